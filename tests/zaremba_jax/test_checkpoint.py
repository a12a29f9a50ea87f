import dataclasses
import errno
import gc
import os
import pathlib
import resource
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from faults.harm import flipped, largest, removed, truncated
from invoke import run_on_devices

from zaremba_jax import checkpoint
from zaremba_jax.checkpoint import (
    CHECKSUMS_FILE,
    DamagedCheckpointError,
    clear_after,
    restore,
    save,
)
from zaremba_jax.config import override
from zaremba_jax.presets import QUICK
from zaremba_jax.train import init_train_state

CONFIG = override(QUICK, hidden_size=4)


def state_at(step, seed=0):
    state = init_train_state(override(CONFIG, seed=seed), 11)
    filled = jax.tree.map(
        lambda x: x + jnp.asarray(step, x.dtype), (state.params, state.opt_state, state.rnn_state)
    )
    params, opt_state, rnn_state = filled
    return dataclasses.replace(
        state,
        params=params,
        opt_state=opt_state,
        rnn_state=rnn_state,
        step=jnp.asarray(step, jnp.int32),
    )


def make_template(record):
    """The shapes of a run that accepts any checkpoint."""
    return state_at(0)


def assert_same(one, other):
    def plain(state):
        return jax.tree.map(
            np.array, dataclasses.replace(state, key=jax.random.key_data(state.key))
        )

    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, plain(one), plain(other))


def test_restore_inverts_save_to_the_bit(tmp_path):
    record = {"history": [{"epoch": 1, "nll": 0.1 + 0.2}], "seconds": 1e-17}
    save(tmp_path / "checkpoints", 3, state_at(3, seed=7), record)
    restored = restore(tmp_path / "checkpoints", make_template)
    assert restored is not None
    assert_same(restored.state, state_at(3, seed=7))
    assert restored.record == record
    assert restored.damaged == ()


def test_kind_of_its_keys_is_restored_whatever_jax_s_default_is(tmp_path):
    saved = state_at(3)
    save(tmp_path / "run", 3, saved, {})
    with jax.default_prng_impl("rbg"):
        restored = restore(tmp_path / "run", make_template)
    assert restored is not None
    assert_same(restored.state, saved)


def test_newest_is_restored_and_the_newest_two_are_kept(tmp_path):
    for step in (1, 5, 10):
        save(tmp_path, step, state_at(step), {"step": step})
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert restored.record == {"step": 10}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]
    for step in (10, 7):
        with pytest.raises(ValueError, match=rf"step={step}: .* has a checkpoint of step 10"):
            save(tmp_path, step, state_at(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "5"]


@pytest.mark.parametrize("damage", [removed, truncated, flipped])
def test_damaged_checkpoint_falls_back_to_the_one_before_and_makes_room_for_a_new_one(
    tmp_path, damage
):
    for step in (1, 2):
        save(tmp_path, step, state_at(step), {"step": step})
    damage(largest(tmp_path / "2"))
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert_same(restored.state, state_at(1))
    assert restored.damaged == (str(tmp_path / "2"),)
    clear_after(tmp_path, 1)
    save(tmp_path, 2, state_at(2), {"step": 2})
    newest = restore(tmp_path, make_template)
    assert newest is not None
    assert_same(newest.state, state_at(2))


def test_when_all_are_damaged_the_error_says_so_and_nothing_is_removed(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, state_at(step), {"step": step})
        flipped(largest(tmp_path / str(step)))
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged; remove"):
        restore(tmp_path, make_template)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for step in (1, 2):
        save(tmp_path, step, state_at(step), {"step": step})
    with monkeypatch.context() as failing:
        failing.setattr(pathlib.Path, "read_bytes", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as error:
            restore(tmp_path, make_template)
    assert error.value.filename == str(tmp_path / "2")
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert restored.record == {"step": 2}


def test_no_checkpoint_is_none_and_makes_no_directory(tmp_path):
    assert restore(tmp_path / "absent", make_template) is None
    assert not (tmp_path / "absent").exists()
    assert restore(tmp_path, make_template) is None


def test_checkpoint_of_another_run_is_refused_before_its_state_is_read(tmp_path):
    save(tmp_path, 1, state_at(1), {"text": "theirs"})

    def refuse(record):
        raise LookupError(record["text"])

    with pytest.raises(LookupError, match="theirs"):
        restore(tmp_path, refuse)
    assert (tmp_path / "1").exists()


def test_checkpoint_cut_off_before_its_end_is_passed_over_and_makes_room(tmp_path):
    save(tmp_path, 1, state_at(1), {})
    (tmp_path / "1" / CHECKSUMS_FILE).unlink()
    assert restore(tmp_path, make_template) is None
    clear_after(tmp_path, 0)
    save(tmp_path, 1, state_at(1), {})
    save(tmp_path, 2, state_at(2), {})
    (tmp_path / "2" / CHECKSUMS_FILE).unlink()
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert int(restored.state.step) == 1
    assert restored.damaged == ()
    clear_after(tmp_path, 1)
    save(tmp_path, 2, state_at(2), {})


def test_folder_of_a_checkpoint_that_was_cut_off_is_gone_before_the_next_is_written(tmp_path):
    save(tmp_path, 1, state_at(1), {})
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    clear_after(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    save(tmp_path, 2, state_at(2), {})


def test_what_a_faster_host_begins_to_write_is_not_cleared(tmp_path, monkeypatch):
    begun = tmp_path / "run" / "1.orbax-checkpoint-tmp"
    monkeypatch.setattr(checkpoint, "_wait_for_all", lambda _: begun.mkdir(parents=True))
    clear_after(tmp_path / "run", 0)
    assert begun.exists()


def test_remains_of_an_old_checkpoint_are_passed_over_in_silence(tmp_path, caplog):
    for step in (1, 2):
        save(tmp_path, step, state_at(step), {})
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert int(restored.state.step) == 2
    assert caplog.messages == []


def test_reading_leaves_a_checkpoint_that_is_being_written(tmp_path):
    save(tmp_path, 1, state_at(1), {})
    save(tmp_path, 2, state_at(2), {})
    (tmp_path / "2" / CHECKSUMS_FILE).unlink()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    restore(tmp_path, make_template)
    assert sorted(tmp_path.rglob("*")) == before
    clear_after(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_file_that_a_file_manager_adds_does_no_harm(tmp_path):
    save(tmp_path, 1, state_at(1), {})
    (tmp_path / "1" / ".DS_Store").write_bytes(b"Bud1")
    assert restore(tmp_path, make_template) is not None


def assert_full_disk_is_said_and_harmless(folder):
    """Runs in the process of the test below; limits files to 1,000 bytes."""
    save(folder, 1, state_at(1), {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    with pytest.raises(OSError, match=r"takes no checkpoint .* is the disk full"):
        save(folder, 2, state_at(2), {"step": 2})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    restored = restore(folder, make_template)
    assert restored is not None
    assert restored.record == {"step": 1}


def test_disk_that_is_full_is_said_and_leaves_what_was_saved(tmp_path):
    # In another process: Orbax's threads fail afterwards, which would be blamed on other tests.
    run_on_devices(1, assert_full_disk_is_said_and_harmless, tmp_path)


@pytest.mark.parametrize(
    "name", ["my [v2] run", "c[d]", "a\\b", "what? *", "é 日 $HOME {a,b}#%41~", "caf\udce9"]
)
def test_path_may_have_any_character(tmp_path, name):
    for step in (1, 2):
        save(tmp_path / name / "run", step, state_at(step), {"step": step})
    clear_after(tmp_path / name / "run", 1)
    restored = restore(tmp_path / name / "run", make_template)
    assert restored is not None
    assert_same(restored.state, state_at(1))
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Orbax's threads end with errors of their own in this case, seen where they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoint_that_lacks_what_a_resume_needs_is_noticed_as_it_is_written(tmp_path):
    path = tmp_path / "[run]"
    with (
        mock.patch.object(checkpoint, "_SPECIAL_IN_ORBAX", frozenset()),  # as Orbax takes the path
        pytest.raises(OSError, match="checkpoint of step 1 lacks arrays of the state"),
    ):
        save(path, 1, state_at(1), {})
    assert restore(path, make_template) is None


def test_error_of_another_kind_is_not_called_a_full_disk(tmp_path):
    with (
        mock.patch.object(ocp.CheckpointManager, "save", side_effect=ValueError("no such item")),
        pytest.raises(ValueError, match="no such item"),
    ):
        save(tmp_path, 1, state_at(1), {})


def test_checkpoints_without_checksums_that_were_not_cut_off_are_kept_and_named_damaged(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, state_at(step), {})
        (tmp_path / str(step) / CHECKSUMS_FILE).unlink()
    with pytest.raises(DamagedCheckpointError):
        restore(tmp_path, make_template)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_process_that_saves_again_and_again_does_not_grow(tmp_path):
    def dictionaries_after(*steps):
        for step in steps:
            save(tmp_path, step, state, {})
        gc.collect()
        return sum(type(each) is dict for each in gc.get_objects())

    state = state_at(1)
    before = dictionaries_after(1, 2, 3)
    assert dictionaries_after(*range(4, 14)) - before < 200  # TensorStore kept 42 a save


def test_damaged_description_of_a_checkpoint_is_not_reported_by_orbax_too(tmp_path, caplog):
    for step in (1, 2):
        save(tmp_path, step, state_at(step), {})
    (tmp_path / "2" / "_CHECKPOINT_METADATA").write_text("garbage")
    restored = restore(tmp_path, make_template)
    assert restored is not None
    assert restored.damaged == (str(tmp_path / "2"),)
    assert caplog.messages == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_lack_of_space_is_told_as_one(number):
    told = os.strerror(number)
    error = ValueError(f"OS error {number} writing a file: {told}\nand more")
    assert checkpoint._why(error) == f"({told.lower()}); is the disk full?"


@pytest.mark.parametrize(
    ("told", "is_systems"),
    [
        ("NOT_FOUND: Error writing in OCDBT database at local file: reading local file", True),
        ("Failed to write 337 bytes [os_error_code='28']", True),
        ("an axis of 3 does not divide 4", False),
    ],
)
def test_what_tensorstore_says_of_files_is_the_systems(told, is_systems):
    assert checkpoint._is_systems(ValueError(told)) is is_systems
