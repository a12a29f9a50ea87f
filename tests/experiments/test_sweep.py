"""The sweep program: models of different rates side by side, each as it would be alone."""

import itertools
import shutil
import signal
import sys
from types import SimpleNamespace
from typing import Any

import invoke
import numpy as np
import pytest
from invoke import SWEPT, TEXT, assert_refused, content, summary_of

from experiments import sweep
from experiments.training.curves import Curves
from experiments.training.journal import Journal
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.presets import QUICK

GRID = ("--vary=dropout=0,0.25", "--vary=learning_rate=0.5,1,1e9")
BAD_FLAGS = [
    ([], ["--vary: nothing to try; give --vary=dropout=0.3,0.5"]),
    (["--vary=hidden_size=2,3"], ["--vary=hidden_size=2,3: give one of learning_rate, dropout"]),
    (["--vary=zoneout_cell=0.1"], ["--vary=zoneout_cell=0.1: give one of"]),
    (["--vary=average_from=1,2"], ["--vary=average_from=1,2: give one of learning_rate, dropout"]),
    (["--vary=dropout=a"], ["--vary=dropout=a: give numbers, separated by commas"]),
    (["--vary=dropout=0,0.0"], ["--vary=dropout=0,0.0: a value is given twice; give each once"]),
    (["--vary=dropout=0", "--vary=dropout=1"], ["--vary=dropout=1: dropout is given twice"]),
    (["--vary=dropout=0.1", "--dropout=0.5"], ["--vary=dropout=0.1: dropout is given twice"]),
    (["--vary=dropout=1.5"], ["dropout=1.5: must be"]),
    (["--vary=dropout=0.1", "--sizes=1"], ["--sizes: a sweep averages no models"]),
    (["--vary=dropout=0,0.1", "--members=60000"], ["--vary, --members: make more than 100000 mod"]),
    (["--vary=dropout=0.1", "--patience=2"], ["patience=2: models that train side by side end"]),
]


def run(*flags):
    return invoke.run(*flags, program=sweep)


@pytest.mark.slow
def test_models_of_a_sweep_are_the_runs_of_their_settings_and_the_best_is_kept(folder):
    flags = [*SWEPT, *GRID, "--members=2", "--clip_norm=1e9", "--workdir=sweep"]
    swept, resumed, averaged = run(*flags), run(*flags), run(*flags, "--vary=l2=0")
    assert (swept.status, swept.err) == (0, "")
    summary = summary_of(folder / "sweep")
    lines = summary["settings"]
    assert [tuple(line["setting"].values()) for line in lines] == list(
        itertools.product((0, 0.25), (0.5, 1, 1e9))
    )
    assert [member["seed"] for line in lines for member in line["members"]] == [0, 1] * 6
    diverged = [line for line in lines if any(member["excluded"] for member in line["members"])]
    assert [line["setting"]["learning_rate"] for line in diverged] == [1e9, 1e9]
    assert "--dropout=0.25 --learning_rate=1000000000.0 --seed=1: the loss became" in swept.out

    for index, seed in ((1, 1), (3, 0)):
        asked = [f"--{name}={value}" for name, value in lines[index]["setting"].items()]
        alone = invoke.run(*SWEPT, *asked, f"--seed={seed}", "--clip_norm=1e9", "--workdir=alone")
        assert alone.status == 0, alone.err
        member, single = lines[index]["members"][seed], summary_of(folder / "alone")
        for name in ("valid_perplexity", "test_perplexity"):
            assert member[name] == single[name]
        (folder / "alone").rename(folder / f"alone{index}")

    finite = [line for line in lines if line not in diverged]
    best = min(finite, key=lambda line: sum(m["valid_perplexity"] for m in line["members"]))
    assert summary["best"] == best["setting"]
    best_flags = " ".join(f"--{name}={value!r}" for name, value in best["setting"].items())
    assert f"best by validation: {best_flags}" in swept.out
    for seed in (0, 1):
        model = load_model(folder / "sweep" / "members" / f"seed-{seed}.safetensors")
        assert model.config.seed == seed
        assert model.config.train.learning_rate == best["setting"]["learning_rate"]
        assert model.config.regularizers.dropout == best["setting"]["dropout"]
    assert (folder / "sweep" / "sweep.png").stat().st_size > 10_000

    assert (resumed.status, resumed.err) == (0, "")
    assert "resuming sweep after epoch 2, window 0" in resumed.out
    assert_refused(averaged, "sweep: holds a run of another configuration: vary (")


def test_bad_flags_are_refused_and_nothing_is_written(folder):
    before = content(folder)
    for flags, telling in BAD_FLAGS:
        assert_refused(run(*TEXT, *flags), *telling)
    assert content(folder) == before


def test_best_setting_has_the_lowest_mean_validation_perplexity():
    corpus = SimpleNamespace(name="ours")
    line = {"valid_perplexity_estimate": 9.0, "words_per_second": 7.0}
    journal = Journal([0.0] * 4, history=[line])
    run: Any = SimpleNamespace(config=QUICK, corpus=corpus, kernel={}, journal=journal, devices=3)
    run.members, run.live = 4, [0, 1, 2, 3]
    run.seed = lambda member: member % 2
    valid, test = (np.log([[x] for x in xs]) for xs in ([2.0, 4.0, 2.5, 3.0], [1.0, 1.0, 9.0, 9.0]))
    summary = sweep.summarize_sweep(run, {"dropout": [0.0, 0.5]}, 2, valid, test)
    assert (summary["best"], summary["best_members"]) == ({"dropout": 0.5}, [2, 3])
    assert (summary["words_per_second"], summary["device"][:3]) == (7.0, "3 ×")


def test_boards_show_the_best_setting_and_a_sweep_of_one_has_no_model_to_try(
    folder, monkeypatch, ctrl_c_after
):
    shown = []
    monkeypatch.setattr(Curves, "results", lambda self, step, figures: shown.append(figures))
    flags = (*SWEPT, "--vary=dropout=0", "--workdir=sweep")
    ctrl_c_after(1)
    stopped = run(*flags)
    assert stopped.status == 128 + signal.SIGINT
    assert "give the same command to resume" in stopped.out
    assert "experiments.generate" not in stopped.out
    assert run(*flags).status == 0
    (member,) = summary_of(folder / "sweep")["settings"][0]["members"]
    assert shown == [{name: member[name] for name in ("valid_perplexity", "test_perplexity")}]


def test_sweep_without_a_best_setting_leaves_no_model_of_fewer_epochs(folder, monkeypatch):
    flags = (*SWEPT, "--vary=dropout=0,0.25", "--workdir=sweep")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing is drawn
    assert run(*flags).status == 0
    (own,) = (folder / "sweep" / "members").iterdir()
    kept = shutil.copy(own, own.with_name("mine.safetensors"))
    monkeypatch.setattr(sweep, "setting_perplexities", lambda setting, split: [])
    assert run(*flags).status == 0
    assert list((folder / "sweep" / "members").iterdir()) == [kept]


def test_rates_of_adam_can_be_tried(folder):
    flags = ("--optimizer=adam", "--vary=learning_rate=0.001,0.002", "--workdir=sweep")
    outcome = run(*SWEPT, *flags, "--epochs=1")
    assert outcome.status == 0, outcome.err
    assert len(summary_of(folder / "sweep")["settings"]) == 2
