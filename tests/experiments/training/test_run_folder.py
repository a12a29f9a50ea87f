import io
import json
import os
import subprocess
import sys
from pathlib import Path

import invoke
import pytest
from invoke import content

from experiments.reports.records import read_record
from experiments.training import kernel_choice
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json
from zaremba_jax.checkpoint import CHECKSUMS_FILE
from zaremba_jax.config import override, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.presets import QUICK


def read_json(path):
    return json.loads(path.read_text())


def test_run_makes_its_folder_and_parents_and_writes_every_setting(tmp_path):
    workdir = Workdir(tmp_path / "runs" / "one")
    workdir.hold()
    workdir.write_config(QUICK)
    assert read_json(workdir.config) == to_dict(QUICK)
    assert list(content(tmp_path / "runs" / "one")) == ["config.json"]
    workdir.hold()
    workdir.write_config(QUICK)
    workdir.refuse_another_run(QUICK)


def test_nothing_is_made_before_the_folder_is_held(tmp_path):
    Workdir(tmp_path / "absent").refuse_another_run(QUICK)
    assert not (tmp_path / "absent").exists()


def test_folder_that_was_replaced_since_it_was_held_is_refused(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.require_held()
    workdir.hold()
    workdir.require_held()
    workdir.path.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="run: was moved or removed while"):
        workdir.require_held()
    workdir.path.mkdir()
    with pytest.raises(InputError, match="run: was moved or removed while"):
        workdir.require_held()


def test_folder_of_other_things_can_take_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)  # of a lost folder
    Workdir(tmp_path).refuse_another_run(QUICK)
    Workdir(tmp_path).hold()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints/1000/weights.bin", "summary.json", "model.safetensors", "curves.png"),
        *("metrics.jsonl", "metrics.csv", "members/weights.bin", "mixtures.png", "sweep.png"),
    ],
)
def test_folder_with_results_of_another_program_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    reported = name.partition("/weights")[0]
    message = f"holds {reported}, which no training run left there; name another --workdir"
    with pytest.raises(ValueError, match=message):
        Workdir(tmp_path).refuse_another_run(QUICK)


def test_folder_whose_name_is_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not UTF-8, which checkpoints need; name another"):
        Workdir(tmp_path / "caf\udce9").refuse_another_run(QUICK)


def test_same_run_may_have_more_epochs_or_fewer(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(QUICK)
    workdir.refuse_another_run(override(QUICK, epochs=99))


def test_check_names_every_differing_field_with_both_values_and_no_other(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(override(QUICK, dropout=0.5, layers=3))
    with pytest.raises(ValueError, match="holds a run of another configuration") as error:
        workdir.refuse_another_run(QUICK)
    assert (
        "configuration: dropout (0.5 there, 0.1 here), layers (3 there, 2 here); name another"
        in str(error.value)
    )


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b'{"name": "qui', b"\xff\xfe", b"[[1, 2]]", b"[[[1]]]", b"3"),
        *(b"[" * 100_000, b'{"a":' * 100_000),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_record_that_is_cut_off_hostile_or_of_another_shape_is_damaged(tmp_path, content):
    workdir = Workdir(tmp_path)
    workdir.config.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: is damaged; remove it if the run"):
        workdir.refuse_another_run(QUICK)
    with pytest.raises(InputError, match="holds a damaged record"):
        read_record(workdir)
    workdir.kernel.write_bytes(content)
    with pytest.raises(InputError, match=r"kernel\.json: is damaged"):
        kernel_choice._read(workdir.kernel)


def test_record_from_before_a_setting_existed_means_its_default(tmp_path):
    workdir = Workdir(tmp_path)
    record = to_dict(QUICK)
    del record["unit"], record["cell"]
    write_json(workdir.config, record)
    workdir.refuse_another_run(QUICK)
    with pytest.raises(ValueError, match=r"configuration: cell \(lstm there, gru here\);"):
        workdir.refuse_another_run(override(QUICK, cell="gru"))


def test_record_from_before_custom_vjp_was_called_so_is_of_the_same_run(tmp_path):
    workdir = Workdir(tmp_path)
    write_json(workdir.config, to_dict(QUICK) | {"kernel": "xla"})
    workdir.refuse_another_run(QUICK)
    assert workdir.read_config() == (QUICK, {})
    with pytest.raises(ValueError, match=r"kernel \(custom_vjp there, scan here\);"):
        workdir.refuse_another_run(override(QUICK, kernel="scan"))


def test_check_names_a_field_that_one_of_the_two_lacks(tmp_path):
    workdir = Workdir(tmp_path)
    record = to_dict(QUICK) | {"tied": True}
    del record["seed"]
    write_json(workdir.config, record)
    with pytest.raises(ValueError, match=r"seed \(None there, 0 here\), tied \(True there, None"):
        workdir.refuse_another_run(QUICK)


def test_folder_that_another_process_trains_in_is_refused_until_that_ends(folder):
    hold = "Workdir('run').hold(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", f"from experiments.training.run_folder import Workdir; {hold}"],
        env=os.environ | {"PYTHONPATH": str(invoke.ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for step in ("8", "9"):
            (folder / "run" / "checkpoints" / step).mkdir(parents=True)
        (
            folder / "run" / "checkpoints" / "8" / CHECKSUMS_FILE
        ).touch()  # 9 is what a start would clear
        before = content(folder)
        refused = invoke.run(*invoke.FLAGS, "--workdir=run")
        invoke.assert_refused(refused, "run: another process trains there; wait for it to end")
        assert content(folder) == before
        other.kill()
    Workdir(folder / "run").hold()
    Workdir(folder / "run").hold()


@pytest.mark.usefixtures("no_locks")
def test_folder_on_a_file_system_without_locks_takes_a_run(tmp_path):
    workdir = Workdir(tmp_path / "run")
    workdir.hold()
    workdir.write_config(QUICK)
    assert read_json(workdir.config) == to_dict(QUICK)


def test_check_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="file: is a file; name a folder with --workdir"):
        Workdir(tmp_path / "file").refuse_another_run(QUICK)


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path, before, after = tmp_path / "file", {"epochs": 1}, {"epochs": 2, "floor": None}
    write_json(path, before)
    original = path.read_bytes()

    class Half(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    def half(path, mode):
        return Half(path, mode)

    for owner, name, interrupted in ((Path, "open", half), (os, "replace", stop)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_json(path, after)
        assert path.read_bytes() == original
    write_json(path, after)
    assert read_json(path) == after
    assert list(tmp_path.iterdir()) == [path]
