"""Adam, averaged parameters, the best ones and random offsets, in runs of one model and of many."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from invoke import SINGLE, assert_refused, metrics, run, stored, summary_of, untimed

from experiments import ensemble, sweep
from experiments.training.run import EVALUATION_STREAMS
from zaremba_jax.estimates import averaged_from
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.interop.model_file import load_model, named_arrays

SETTINGS = (
    *(flag for flag in SINGLE if not flag.startswith(("--epochs", "--constant", "--layers"))),
    *("--layers=2", "--epochs=6", "--constant_epochs=6", "--learning_rate=0.5", "--keep=best"),
    *("--average_after_stall=1", "--average_from=5", "--weight_decay=1e-4"),
    *("--input_dropout=0.1", "--output_dropout=0.3", "--output_size=6"),
)
DECAYING = (*SETTINGS, "--constant_epochs=1", "--decay_when_stalled=1")
OFFSET = (*DECAYING, "--random_offset", "--chunk=59")  # 118 windows an epoch


def finished(*flags, program=None):
    outcome = run(*flags, **({"program": program} if program else {}))
    assert (outcome.status, outcome.err) == (0, "")
    return outcome


def states(workdir):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(stored(workdir))]


def estimates(workdir, member=None):
    if member is None:
        return [line["valid_perplexity_estimate"] for line in metrics(workdir)]
    return [line["valid_perplexity_estimates"][member] for line in metrics(workdir)]


def ids(model, name):
    words = Path(name).read_text().replace("\n", " <eos> ").split()
    return model.vocabulary.encode(words)


def estimate_of(model):
    return perplexity(text_nll(model, ids(model, "valid.txt"), EVALUATION_STREAMS))


def figures(workdir):
    return untimed([summary_of(workdir)])


def test_stopped_run_ends_as_one_never_interrupted_with_its_average_and_its_best(
    folder, ctrl_c_after
):
    """Stopped in the epoch after averaging began, and once more at the end of an epoch."""
    finished(*OFFSET, "--workdir=whole")
    assert metrics(folder / "whole")[-1]["learning_rate"] < 0.5  # a stall divided it
    for chunk in (9, 1):
        ctrl_c_after(chunk)
        assert run(*OFFSET, "--workdir=run", "--noresident").status == 128 + signal.SIGINT
    finished(*OFFSET, "--workdir=run")
    assert states(folder / "run") == states(folder / "whole")
    assert untimed(metrics(folder / "run")) == untimed(metrics(folder / "whole"))
    assert figures(folder / "run") == figures(folder / "whole")


def test_stopped_run_with_adam_ends_as_one_never_interrupted(folder, ctrl_c_after):
    adam = (*DECAYING, "--optimizer=adam", "--learning_rate=0.002")
    finished(*adam, "--workdir=whole")
    assert min(estimates(folder / "whole")) < estimates(folder / "whole")[0]
    ctrl_c_after(9)
    assert run(*adam, "--workdir=run").status == 128 + signal.SIGINT
    assert_refused(run(*DECAYING, "--learning_rate=0.002", "--workdir=run"), "optimizer (adam")
    finished(*adam, "--workdir=run")
    assert states(folder / "run") == states(folder / "whole")
    assert figures(folder / "run") == figures(folder / "whole")


def test_run_ends_with_its_best_parameters_and_says_which_they_are(folder):
    finished(*SETTINGS, "--workdir=run")
    found, summary = estimates(folder / "run"), summary_of(folder / "run")
    assert summary["best_epoch"] == 1 + int(np.argmin(found))
    model = load_model(folder / "run" / "model.safetensors")
    assert summary["averaged_from_epoch"] == averaged_from(model.config.train, found) > 0
    state = stored(folder / "run")
    best = jax.tree.leaves(state["best"])
    assert {x.tobytes() for x in named_arrays(model.params).values()} == {
        np.asarray(x).tobytes() for x in best
    }
    assert estimate_of(model) == min(found)
    assert perplexity(text_nll(model, ids(model, "test.txt"))) == summary["test_perplexity"]
    stopped = finished(*SETTINGS, "--keep=last", "--workdir=last", "--patience=1")
    assert "stopped after epoch 2 of 6" in stopped.out
    assert summary_of(folder / "last")["epochs"] == len(metrics(folder / "last")) == 2
    assert summary_of(folder / "last")["averaged_from_epoch"] == 0  # it would be 5
    last = finished(*SETTINGS, "--keep=last", "--workdir=last")
    assert "resuming last after epoch 2" in last.out
    of_last = estimates(folder / "last")
    np.testing.assert_allclose(of_last, found, rtol=1e-5)  # what is kept changes nothing else
    ended = load_model(folder / "last" / "model.safetensors")
    assert estimate_of(ended) == of_last[-1]
    assert not summary_of(folder / "last").keys() & {"best_epoch"}
    assert_refused(run(*SETTINGS, "--workdir=last"), "keep (last there, best here)")


def test_members_have_averages_and_bests_of_their_own_whatever_is_trained_at_once(folder):
    members = ("--members=3", "--members_at_once=2", "--sizes=1")
    finished(*SETTINGS, *members, "--workdir=many", program=ensemble)
    decided = []
    for member, record in enumerate(summary_of(folder / "many")["members"]):
        path = folder / "many" / "members" / f"seed-{member}.safetensors"
        model, found = load_model(path), estimates(folder / "many", member)
        assert record["best_epoch"] == 1 + int(np.argmin(found))
        assert record["averaged_from_epoch"] == averaged_from(model.config.train, found)
        decided.append((record["best_epoch"], record["averaged_from_epoch"]))
        assert estimate_of(model) == pytest.approx(min(found), rel=1e-5)
    finished(*SETTINGS, "--seed=2", "--workdir=alone")
    np.testing.assert_allclose(
        estimates(folder / "many", 2), estimates(folder / "alone"), rtol=1e-4
    )
    alone = summary_of(folder / "alone")
    assert decided[2] == (alone["best_epoch"], alone["averaged_from_epoch"])
    assert len(set(decided)) > 1  # else the seeds here show nothing: take others


def test_rates_of_sites_and_decay_can_vary_in_a_sweep(folder):
    flags = [flag for flag in SETTINGS if not flag.startswith(("--input", "--weight", "--epochs"))]
    vary = ("--epochs=2", "--vary=input_dropout=0,0.5", "--vary=weight_decay=0,0.01")
    finished(*flags, *vary, "--workdir=swept", program=sweep)
    lines = summary_of(folder / "swept")["settings"]
    for index, line in enumerate(lines):
        asked = [f"--{name}={value}" for name, value in line["setting"].items()]
        finished(*flags, "--epochs=2", *asked, f"--workdir=alone-{index}")
        alone = summary_of(folder / f"alone-{index}")["test_perplexity"]
        assert line["members"][0]["test_perplexity"] == pytest.approx(alone, rel=1e-4)
    assert len({line["members"][0]["test_perplexity"] for line in lines}) == 4


def test_text_too_short_for_an_offset_is_refused_with_remedies(folder):
    refused = run(*SETTINGS, "--random_offset", "--unroll=400", "--workdir=run")
    assert_refused(refused, "1200 training tokens", "lower", "or turn off random_offset")
