"""What `--wandb` logs: to a recorder that stands in for the library, and offline to the library."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from invoke import SINGLE, WINDOWS, assert_refused, metrics, run, summary_of


@pytest.fixture
def recorded(monkeypatch):
    """What a stand-in for the library is told; its run breaks at the step in `breaks_at`."""
    seen = SimpleNamespace(opened=[], points=[], summary={}, finished=0, breaks_at=None, refuses="")
    library = ModuleType("wandb")
    library.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="recorder")

    def log(values, step):
        if step == seen.breaks_at:
            raise ConnectionResetError("Connection lost")
        seen.points.append((step, values))

    def finish():
        seen.finished += 1

    def init(**options):
        if seen.refuses:
            raise ValueError(seen.refuses)
        seen.opened.append(options)
        return SimpleNamespace(log=log, summary=seen.summary, finish=finish)

    content = {
        "init": init,
        "Error": type("Error", (Exception,), {}),
        "Settings": SimpleNamespace,
        "Histogram": SimpleNamespace,
        "Html": str,
        "setup": lambda settings: None,
        "teardown": lambda: None,
    }
    vars(library).update(content)
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return seen


def test_resumed_run_goes_on_in_the_same_run_there_with_every_figure(folder, recorded):
    assert run(*SINGLE, "--workdir=run", "--wandb", "--epochs=1").status == 0
    assert run(*SINGLE, "--workdir=run", "--wandb").status == 0
    first, second = recorded.opened
    assert first["id"] == second["id"]
    assert (first["name"], first["project"], first["resume"]) == ("run", "zaremba_jax", "allow")
    assert (first["config"]["dropout"], second["config"]["epochs"]) == (0.25, 2)
    tag = "loss/valid_perplexity_estimate"
    estimates = [(step, values[tag]) for step, values in recorded.points if tag in values]
    lines = metrics(folder / "run")
    assert estimates == [
        (epoch * WINDOWS, line["valid_perplexity_estimate"]) for epoch, line in enumerate(lines, 1)
    ]
    tags = sorted({tag for _, values in recorded.points for tag in values})
    assert tags[0].startswith("loss/")
    assert {tag.partition("/")[0] for tag in tags} == {"loss", "optimizer", "recurrence", "speed"}
    assert recorded.finished == 2
    final = summary_of(folder / "run")
    assert recorded.summary == {x: final[x] for x in ("valid_perplexity", "test_perplexity")}


def test_variable_of_the_library_that_it_does_not_take_is_told_in_one_line(folder, recorded):
    recorded.refuses = "1 validation error for Settings\nmode"
    outcome = run(*SINGLE, "--workdir=run", "--wandb")
    assert (outcome.status, outcome.err) == (0, "")
    assert "1 validation error for Settings mode" in outcome.out


def test_run_goes_on_when_the_connection_is_lost(folder, recorded):
    recorded.breaks_at = WINDOWS
    outcome = run(*SINGLE, "--workdir=run", "--wandb")
    assert (outcome.status, outcome.err) == (0, "")
    (line,) = [line for line in outcome.out.splitlines() if "Weights & Biases" in line]
    assert "Connection lost; training goes on" in line
    assert len(metrics(folder / "run")) == 2


def test_without_its_package_the_flag_is_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (folder / "wandb").mkdir()  # as the package leaves it; Python would import it
    refused = run(*SINGLE, "--workdir=run", "--wandb")
    assert_refused(refused, "--wandb", "pip install 'zaremba-jax[wandb]'")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb")
@pytest.mark.filterwarnings("default")
def test_library_takes_it_offline(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for epochs in ("1", "2"):
        outcome = run(*SINGLE, "--workdir=run", "--wandb", f"--epochs={epochs}")
        assert (outcome.status, outcome.err) == (0, "")
        assert "Weights & Biases" not in outcome.out
    identity = (folder / "run" / "wandb_id.txt").read_text().strip()
    logs = list(folder.glob(f"run/wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(logs) == 2
    for log in logs:
        content = log.read_bytes()
        assert b"loss/valid_perplexity_estimate" in content
        assert b"recurrence/layer_1_f" in content
