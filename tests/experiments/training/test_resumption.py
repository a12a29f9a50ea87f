"""A run that was killed, stopped or damaged ends like an uninterrupted one."""

import json
import math
import os
import shutil
import signal
import types
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.child import send_at_path
from faults.forked import fork
from faults.harm import flipped, largest
from invoke import (
    CONFIG,
    FLAGS,
    WINDOWS,
    assert_refused,
    assert_same_run,
    content,
    last_state,
    metrics,
    run,
    run_in,
)

from experiments import ensemble
from experiments.reports.records import read_record
from experiments.training import environment, loop, resumption, run_folder
from experiments.training import single_run as run_module
from experiments.training.run_folder import Workdir

OFTEN = "--checkpoint_minutes=0"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The workdir of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    run_in(folder, *FLAGS, "--workdir=run")
    return folder / "run"


def steps(folder):
    """The steps of the checkpoints so far."""
    return sorted(int(p.name) for p in folder.glob("run/checkpoints/*") if p.name.isdecimal())


def interrupted(number, folder):
    """Outcome of a process that gets a signal within its first epoch, as it saves window 9."""
    hit = partial(send_at_path, "checkpoints/9/checksums.json", number)
    flags = (*FLAGS, "--workdir=run", OFTEN)
    return fork("experiments.ptb", *flags, folder=folder, befalls=hit).end()


def test_run_killed_within_an_epoch_ends_as_one_never_interrupted(folder, reference):
    status, _, err = interrupted(signal.SIGKILL, folder)
    assert (status, err) == (-signal.SIGKILL, "")
    resumed = run(*FLAGS, "--workdir=run")
    assert resumed.status == 0
    assert "resuming run after epoch 0, window 6\n" in resumed.out  # 9 was cut off
    assert_same_run(folder / "run", reference)


def test_terminated_run_saves_says_so_and_ends_as_one_never_interrupted(folder, reference):
    status, out, err = interrupted(signal.SIGTERM, folder)
    assert status == 128 + signal.SIGTERM, err
    assert out.endswith(
        f"stopped by SIGTERM after epoch 0, window 12 of {WINDOWS};"
        " saved in run, give the same command to resume,"
        " or try its model: experiments.generate --workdir=run\n"
    )
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


@pytest.mark.parametrize(
    ("chunk", "position", "resident"),
    [
        (1, "epoch 0, window 3", (True, True)),
        (2, "epoch 0, window 6", (False, False)),
        (40, "epoch 1, window 0", (False, True)),
        (43, "epoch 1, window 9", (True, False)),
    ],
    ids=["first chunk", "first epoch", "end of an epoch", "second epoch"],
)
def test_ctrl_c_saves_the_chunk_that_it_hit_wherever_the_text_lies_before_and_after(
    folder, reference, ctrl_c_after, chunk, position, resident, monkeypatch
):
    asked, loader = [], run_module.WindowLoader

    def observed(*text, resident):
        asked.append(resident)
        return loader(*text, resident=resident)

    monkeypatch.setattr(run_module, "WindowLoader", observed)
    ctrl_c_after(chunk)
    stopped, resumed = (run(*FLAGS, "--workdir=run", f"--resident={way}") for way in resident)
    assert (stopped.status, stopped.err) == (128 + signal.SIGINT, "")
    assert f"stopped by SIGINT after {position} of {WINDOWS}; saved in run" in stopped.out
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resuming run after {position}" in resumed.out
    assert_same_run(folder / "run", reference)
    assert asked == [*resident]


def test_second_ctrl_c_stops_at_once_and_keeps_what_was_saved(folder, reference, ctrl_c_after):
    ctrl_c_after(50, times=2)
    assert_refused(run(*FLAGS, "--workdir=run"), "interrupted", status=128 + signal.SIGINT)
    assert steps(folder) == [WINDOWS]
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


def test_number_of_epochs_without_end_begins_like_any_other(folder, ctrl_c_after):
    ctrl_c_after(1)
    assert run(*FLAGS, f"--epochs={10**8}", "--workdir=run").status == 128 + signal.SIGINT
    assert steps(folder) == [3]


def test_checkpoint_is_written_before_the_line_about_its_epoch(folder, monkeypatch):
    saved = []
    monkeypatch.setattr(
        loop.EpochDisplay, "epoch", lambda display, *_: saved.append(steps(folder)[-1])
    )
    assert run(*FLAGS, "--workdir=run").status == 0
    assert saved == [WINDOWS, 2 * WINDOWS]


def test_signal_while_the_bar_is_taken_away_stops_before_the_evaluation(folder, monkeypatch):
    end = loop.EpochDisplay.__exit__

    def hit(display, *how):
        end(display, *how)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.EpochDisplay, "__exit__", hit)
    stopped = run(*FLAGS, "--workdir=run")
    assert (stopped.status, stopped.err) == (128 + signal.SIGTERM, "")
    assert "stopped by SIGTERM after epoch 2, window 0" in stopped.out


def test_run_whose_folder_another_takes_while_it_is_evaluated_writes_nothing_there(
    folder, monkeypatch
):
    evaluate = run_module.SingleRun.nll

    def taken(*what):
        if not (folder / "moved").exists():
            (folder / "run").rename("moved")
            (folder / "run").mkdir()
        return evaluate(*what)

    monkeypatch.setattr(run_module.SingleRun, "nll", taken)
    assert_refused(run(*FLAGS, "--workdir=run"), "run: was moved or removed while the run trained")
    assert not list((folder / "run").iterdir())


def test_ctrl_c_while_the_last_checkpoint_is_written_stops_before_the_evaluation(
    folder, reference, monkeypatch
):
    epochs, save = len(metrics(reference)), resumption.checkpoint.save

    def hit(path, step, *what):
        save(path, step, *what)
        if step == epochs * WINDOWS:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as hitting:
        hitting.setattr(resumption.checkpoint, "save", hit)
        stopped = run(*FLAGS, "--workdir=run")
    assert stopped.status == 128 + signal.SIGINT
    assert f"stopped by SIGINT after epoch {epochs}, window 0" in stopped.out
    assert not (folder / "run" / "summary.json").exists()
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


@pytest.mark.parametrize(("seconds", "saved"), [(8, [1, 4, 5]), (25, [1, 2, 3, 4, 5])])
def test_short_epochs_are_not_all_saved_and_all_have_their_metrics(
    folder, monkeypatch, seconds, saved
):
    clock, written = [0.0], {}
    train_windows, save = run_module.train_windows, resumption.checkpoint.save
    text_nll = run_module.text_nll

    def slow_train(config, state, windows, *rest, **more):
        clock[0] += len(windows) * (seconds - 2) / WINDOWS
        return train_windows(config, state, windows, *rest, **more)

    def slow_estimate(*text):
        clock[0] += 2
        return text_nll(*text)

    def slow_save(path, step, *what):
        save(path, step, *what)
        written[step // WINDOWS] = len(metrics(folder / "run"))
        clock[0] += 1

    with monkeypatch.context() as slow:
        for module in (loop, resumption):
            slow.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
        slow.setattr(run_module, "train_windows", slow_train)
        slow.setattr(run_module, "text_nll", slow_estimate)
        slow.setattr(resumption.checkpoint, "save", slow_save)
        assert run(*FLAGS, "--workdir=run", "--epochs=5").status == 0
    assert written == {epoch: epoch for epoch in saved}
    words = WINDOWS * CONFIG.train.batch_size * CONFIG.train.unroll
    for epoch, line in enumerate(metrics(folder / "run"), 1):
        assert line["words_per_second"] == pytest.approx(words / (seconds - 2))
        assert line["seconds"] == pytest.approx(epoch * seconds)


def test_run_is_saved_within_an_epoch_after_the_minutes_that_were_asked_for(monkeypatch):
    clock, due = [0.0], []
    monkeypatch.setattr(resumption, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    running: Any = types.SimpleNamespace(step=1, windows=range(2), config=CONFIG)
    saves = resumption.Saves(running, Workdir("run"), 10)
    for clock[0] in (599.0, 601.0):
        due.append(saves.is_due())
    assert due == [False, True]


def test_run_stopped_within_an_epoch_is_not_finished_by_asking_for_fewer(folder, ctrl_c_after):
    ctrl_c_after(43)
    assert run(*FLAGS, "--workdir=run").status == 128 + signal.SIGINT
    before = content(folder)
    refused = run(*FLAGS, "--epochs=1", "--workdir=run")
    assert_refused(refused, "run: has trained for 1 epochs and 9 windows; give --epochs=2 or more")
    assert content(folder) == before


def test_history_is_on_the_disk_before_a_checkpoint_counts_on_it(folder, monkeypatch):
    done, fsync, save = [], os.fsync, resumption.checkpoint.save
    history = folder / "run" / "checkpoints" / "history.jsonl"

    def synced(descriptor):
        if history.exists() and os.path.samestat(os.fstat(descriptor), history.stat()):
            done.append("history")
        fsync(descriptor)

    def saved(*what):
        done.append("checkpoint")
        save(*what)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(resumption.checkpoint, "save", saved)
    assert run(*FLAGS, "--workdir=run").status == 0
    assert done == ["history", "checkpoint"] * 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/history.jsonl"])
@pytest.mark.parametrize(
    "change", [lambda b: None, lambda b: b[:-9], lambda b: b[:300] + b"[1" * 9]
)
def test_damaged_history_comes_back_from_its_copy(folder, reference, name, change):
    shutil.copytree(reference, "run")
    path = folder / "run" / name
    before, changed = path.read_bytes(), change(path.read_bytes())
    path.unlink()
    if changed:
        path.write_bytes(changed)
    assert run(*FLAGS, "--workdir=run").status == 0
    assert path.read_bytes() == before


def test_history_that_is_lost_in_both_files_is_refused(folder, reference):
    shutil.copytree(reference, "run")
    (folder / "run" / "metrics.jsonl").write_text("")
    (folder / "run" / "checkpoints" / "history.jsonl").unlink()
    before = content(folder)
    refused = run(*FLAGS, "--workdir=run")
    assert_refused(refused, "run/metrics.jsonl: lacks epochs", "run/checkpoints/history.jsonl; put")
    assert content(folder) == before


def test_lines_of_a_killed_run_that_no_checkpoint_counts_are_gone(folder, reference):
    assert run(*FLAGS, "--epochs=1", "--workdir=run").status == 0
    epochs = metrics(folder / "run")
    for name in ("metrics.jsonl", "checkpoints/history.jsonl"):
        with (folder / "run" / name).open("a") as file:
            file.write(json.dumps(epochs[0] | {"epoch": 2}) + '\n{"epo')
    assert [line["epoch"] for line in read_record(Workdir(folder / "run")).history] == [1, 2]
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


def test_checkpoints_are_of_their_configuration_though_its_record_is_lost(folder, reference):
    shutil.copytree(reference, "run")
    (folder / "run" / "config.json").unlink()
    before = content(folder)
    for other in ("--dropout=0.5", "--hidden_size=9"):
        outcome = run(*FLAGS, other, "--workdir=run")
        assert_refused(outcome, "run: has checkpoints of another configuration; give the flags of")
        assert content(folder) == before
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


def test_run_in_one_precision_does_not_go_on_in_another(folder, reference):
    shutil.copytree(reference, "run")
    before = content(folder)
    with jax.enable_x64(True):
        refused = run(*FLAGS, "--epochs=3", "--workdir=run")
    assert_refused(refused, "run: holds a run in float32, which would go on in float64; set JAX_")
    assert content(folder) == before


def test_run_does_not_go_on_with_other_random_numbers(folder, reference):
    shutil.copytree(reference, "run")
    before = content(folder)
    with jax.threefry_partitionable(False):
        refused = run(*FLAGS, "--epochs=3", "--workdir=run")
    assert_refused(refused, "run: holds a run that ", "set JAX_THREEFRY_PARTITIONABLE=1, or name")
    assert content(folder) == before


def test_run_goes_on_to_more_epochs_than_it_was_begun_with_and_not_back_to_fewer(folder, reference):
    assert run(*FLAGS, "--epochs=1", "--workdir=run").status == 0
    first = (folder / "run" / "summary.json").read_bytes()
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)
    assert (folder / "run" / "summary.json").read_bytes() != first
    before, epochs = content(folder), len(metrics(reference))
    fewer = run(*FLAGS, "--epochs=1", "--workdir=run")
    assert_refused(fewer, f"run: has trained for {epochs} epochs and 0 windows; give --epochs=")
    assert content(folder) == before


def test_run_that_is_told_of_more_epochs_has_no_figures_before_their_end(
    folder, reference, ctrl_c_after
):
    shutil.copytree(reference, "run")
    ctrl_c_after(1)
    assert run(*FLAGS, "--epochs=9", "--workdir=run").status == 128 + signal.SIGINT
    assert not (folder / "run" / "summary.json").exists()


def test_finished_run_that_is_given_again_elsewhere_keeps_where_it_was_trained(
    folder, reference, monkeypatch
):
    shutil.copytree(reference, "run")
    before = (folder / "run" / "summary.json").read_bytes()
    monkeypatch.setattr(environment, "device_name", lambda count=1: "another device")
    monkeypatch.setattr(environment, "version", lambda package: "9.9")
    assert run(*FLAGS, "--workdir=run").status == 0
    assert (folder / "run" / "summary.json").read_bytes() == before


def test_folder_of_one_model_is_not_an_ensembles_even_without_its_configuration(folder, reference):
    shutil.copytree(reference, "run")
    (folder / "run" / "config.json").unlink()
    refused = run(*FLAGS, "--members=1", "--workdir=run", program=ensemble)
    assert_refused(refused, "run: has checkpoints of another configuration; give the flags of")


def test_finished_run_whose_checkpoints_are_gone_is_not_trained_again(folder, reference):
    shutil.copytree(reference, "run")
    shutil.rmtree(folder / "run" / "checkpoints")
    before = content(folder)
    refused = run(*FLAGS, "--workdir=run")
    assert_refused(refused, "run: holds a finished run whose checkpoints are gone; remove its")
    assert content(folder) == before


def test_damaged_checkpoint_is_named_and_the_run_ends_the_same(folder, reference):
    shutil.copytree(reference, "run")
    flipped(largest(folder / "run" / "checkpoints" / str(2 * WINDOWS)))
    outcome = run(*FLAGS, "--workdir=run")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"run/checkpoints/{2 * WINDOWS} was damaged: continuing from the one bef" in outcome.out
    assert "resuming run after epoch 1, window 0" in outcome.out
    assert_same_run(folder / "run", reference)


def test_when_every_checkpoint_is_damaged_one_line_says_so_and_all_is_kept(folder, reference):
    shutil.copytree(reference, "run")
    for step in steps(folder):
        flipped(largest(folder / "run" / "checkpoints" / str(step)))
    before = content(folder)
    outcome = run(*FLAGS, "--workdir=run")
    assert_refused(outcome, "run/checkpoints: every checkpoint is damaged", "remove the directory")
    assert content(folder) == before


def test_run_whose_folder_is_removed_ends_and_makes_no_other(folder, after_chunk):
    def remove(*result):
        shutil.rmtree("run")
        return result

    after_chunk(2, remove)
    refused = run(*FLAGS, "--workdir=run", OFTEN)
    assert_refused(refused, "run: was moved or removed while the run trained there; put it back")
    assert not (folder / "run").exists()


def test_run_whose_folder_is_moved_goes_on_with_the_same_command_there(
    folder, reference, after_chunk
):
    def move(*result):
        (folder / "run").rename("moved")
        return result

    after_chunk(42, move)
    assert_refused(run(*FLAGS, "--workdir=run"), "run: was moved or removed")
    assert not (folder / "run").exists()
    os.close(run_folder._lock((folder / "run").resolve()))  # as when that process has ended
    resumed = run(*FLAGS, "--workdir=moved")
    assert "resuming moved after epoch 1, window 0" in resumed.out
    assert_same_run(folder / "moved", reference)


def assert_diverged(outcome, folder, *telling):
    """Asserts an end with status 1 before any non-finite figure was written."""
    assert_refused(outcome, *telling, "try a lower --learning_rate or --clip_norm", status=1)
    for line in metrics(folder / "run"):
        assert all(math.isfinite(figure) for figure in line.values())


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    folder, reference, after_chunk
):
    after_chunk(42, lambda state, x: (state, x.replace(nll=x.nll.at[1].set(jnp.nan))))
    outcome = run(*FLAGS, "--workdir=run", OFTEN)
    assert_diverged(outcome, folder, "the loss became nan at step 124 (epoch 2, window 5);")
    assert steps(folder)[-1] == WINDOWS + 3
    assert run(*FLAGS, "--workdir=run").status == 0
    assert_same_run(folder / "run", reference)


def test_parameters_that_are_not_finite_are_never_saved(folder, after_chunk):
    def overflow(state, statistics):
        bias = jnp.full_like(state.params.softmax.bias, jnp.inf)
        softmax = state.params.softmax.replace(bias=bias)
        return state.replace(params=state.params.replace(softmax=softmax)), statistics

    after_chunk(3, overflow)
    outcome = run(*FLAGS, "--workdir=run", OFTEN)
    assert_diverged(outcome, folder, "a parameter became infinite or NaN at step 9 (epoch 1")
    assert steps(folder) == [3, 6]


def test_rate_out_of_all_proportion_stops_the_run_at_its_second_step(folder):
    flags = ("--learning_rate=1e30", "--clip_norm=1e30", "--chunk=1", OFTEN)
    outcome = run(*FLAGS, *flags, "--workdir=run")
    assert_diverged(outcome, folder, "the loss became ", " at step 2 (epoch 1, window 2);")
    params = last_state(folder / "run").params
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_validation_perplexity_that_is_infinite_stops_the_run(folder, monkeypatch):
    monkeypatch.setattr(
        run_module, "text_nll", lambda model, ids, streams=1: np.full(len(ids) - 1, 800.0)
    )
    outcome = run(*FLAGS, "--workdir=run")
    assert_diverged(outcome, folder, "the validation perplexity became inf after epoch 1;")
