"""The models of runs that were stopped, or still train."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from invoke import (
    CHUNK,
    CONFIG,
    MEMBERS,
    SINGLE,
    WINDOWS,
    content,
    metrics,
    run,
    run_elsewhere,
    stored,
)
from model_examples import put_model
from test_first_version import unpack

from experiments import ensemble
from experiments.cli.trained_models import (
    load,
    load_models,
    load_with_estimate,
    parts,
    single_model,
)
from experiments.training import unfinished_runs
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json
from zaremba_jax.checkpoint import DamagedCheckpointError, Restored
from zaremba_jax.config import override, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_file import load_model

BEST = (*SINGLE, "--keep=best")
PER_EPOCH = WINDOWS // CHUNK


@pytest.fixture
def stop_after(folder, ctrl_c_after):
    """A function that stops a program after a chunk of a model, counted from 1."""

    def stop(chunk, *flags, **program):
        ctrl_c_after(chunk)
        outcome = run(*flags, "--workdir=run", **program)
        assert outcome.status == 128 + signal.SIGINT, outcome.err
        return outcome.out

    return stop


def assert_same(params, arrays):
    """Asserts that parameters are arrays of a checkpoint, bit for bit."""
    mine, theirs = (
        sorted(np.asarray(x).tobytes() for x in jax.tree.leaves(tree)) for tree in (params, arrays)
    )
    assert mine == theirs


def test_stopped_run_has_the_model_that_it_would_end_with(folder, stop_after, capsys):
    out, workdir = stop_after(1, *BEST), Workdir(folder / "run")
    assert out.endswith("or try its model: experiments.generate --workdir=run\n")
    (model,) = load_models(["run"])
    assert capsys.readouterr().err == (
        "run: is not finished; its model after 0 of 2 epochs and a part of the next\n"
    )
    assert_same(model.params, stored(workdir.path)["params"])  # not the initial ones
    put_model(workdir.model, model)  # as if it had been finished and got more epochs
    stop_after(PER_EPOCH + 1, *BEST)
    before, _ = content(folder), capsys.readouterr()
    model = load(single_model(["run"], "workdir"))
    assert content(folder) == before
    assert capsys.readouterr().err == (
        "run: is not finished; its model of epoch 1, the best after 1 of 2 epochs and a part of the"
        " next\n"
    )
    (line,) = metrics(workdir.path)
    estimate = line["valid_perplexity_estimate"]
    with workdir.metrics.open("a") as file:  # as if it had gone on and been killed
        file.write(json.dumps(line | {"epoch": 2, "valid_perplexity_estimate": 3.2}) + "\n")
    outcomes = run_elsewhere(
        "experiments.export",
        ["--workdir=run", "--out=exported"],
        ["--workdir=run/model.safetensors", "--out=older"],
        cwd=folder,
    )
    assert [outcome.status for outcome in outcomes] == [0, 0]
    told = f"validation (an estimate after epoch 1 of 2; the run is not finished) | {estimate:.1f}"
    assert f"| {told} |" in (folder / "exported" / "README.md").read_text()
    assert "an estimate" not in (folder / "older" / "README.md").read_text()
    assert_same(model.params, stored(workdir.path)["best"])
    assert model.config == override(CONFIG, keep="best")
    assert model.vocabulary == load_model(workdir.model).vocabulary
    with pytest.raises(InputError, match="is not finished, so that its model may change"):
        parts(single_model(["run"], "init_from"))


@pytest.mark.parametrize("overtaken", [True, False])
def test_checkpoint_that_a_run_removes_meanwhile_is_not_damaged(tmp_path, monkeypatch, overtaken):
    workdir, restored = Workdir(tmp_path), Restored(None, {}, damaged=())
    (workdir.checkpoints / "1").mkdir(parents=True)

    def restore(*args):
        if (workdir.checkpoints / "2").exists():
            return restored
        if overtaken:
            (workdir.checkpoints / "2").mkdir()
        raise DamagedCheckpointError("every checkpoint is damaged")

    monkeypatch.setattr(unfinished_runs, "restore", restore)
    if overtaken:
        assert unfinished_runs.restore_while_written(workdir.checkpoints, dict) is restored
    else:
        with pytest.raises(DamagedCheckpointError):
            unfinished_runs.restore_while_written(workdir.checkpoints, dict)


def test_stopped_ensemble_has_its_members_and_a_sweep_has_none(
    folder, stop_after, capsys, monkeypatch
):
    flags = (*MEMBERS, "--members_at_once=2", "--keep=best")
    stop_after(2 * PER_EPOCH + 2, *flags, program=ensemble)
    models = load_models(["run"])
    assert "its 3 models of epochs 1, 1, 1, the best after 1 of 2" in capsys.readouterr().err
    chunks = stored(folder / "run")
    for seed, model in enumerate(models):
        chunk, row = divmod(seed, 2)
        assert model.config.seed == seed
        assert_same(model.params, jax.tree.map(lambda x, row=row: x[row], chunks[chunk]["best"]))
    restore = unfinished_runs.restore_while_written

    def with_one_that_diverged(*args):
        restored = restore(*args)
        assert restored is not None
        restored.record["excluded"] = {"1": "the loss became nan"}
        return restored

    with monkeypatch.context() as diverged:
        diverged.setattr(unfinished_runs, "restore_while_written", with_one_that_diverged)
        assert [model.config.seed for model in load_models(["run"])] == [0, 2]
    assert "its 2 models of epochs 1, 1, the best after 1 of 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="has 3 models and is not finished"):
        load(single_model(["run"], "workdir"))
    write_json(Workdir("run").config, to_dict(CONFIG) | {"vary": "dropout=0_0.5"})
    with pytest.raises(InputError, match="holds a sweep, whose best setting is known at its end"):
        load_models(["run"])


def test_model_within_an_epoch_has_no_estimate_unless_it_is_the_best(folder, stop_after):
    for flags, names in ((SINGLE, []), (BEST, ["validation (an estimate after epoch 1 of 2"])):
        stop_after(PER_EPOCH + 1, *flags)
        _, perplexities = load_with_estimate(single_model(["run"], "workdir"))
        assert [name.partition(";")[0] for name in perplexities] == names
        shutil.rmtree(folder / "run")


def test_checkpoint_of_the_first_version_has_no_vocabulary(tmp_path):
    unpack("run", tmp_path)
    with pytest.raises(InputError, match="an earlier version saved it, without its vocabulary"):
        load_models([str(tmp_path / "stopped")])
