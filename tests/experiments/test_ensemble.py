"""The ensemble program: members, mixtures, resumption, divergence, mistakes."""

import dataclasses
import json
import shutil
import signal
from types import SimpleNamespace
from typing import Any, cast

import invoke
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import (
    CHUNK,
    MEMBERS,
    ROOT,
    SINGLE,
    TEXT,
    WINDOWS,
    assert_refused,
    content,
    metrics,
    stored,
    summary_of,
    untimed,
)

from experiments import ensemble
from experiments.cli import opened_runs
from experiments.training import ensemble_run, unfinished_runs
from experiments.training.single_run import SingleRun
from zaremba_jax.checkpoint import DamagedCheckpointError
from zaremba_jax.config import override
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.parallel.members import members_that_fit
from zaremba_jax.parallel.mesh import MEMBER
from zaremba_jax.presets import QUICK


def run(*flags):
    return invoke.run(*flags, program=ensemble)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the outcome of an ensemble that was never interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, invoke.run_in(folder, *MEMBERS, "--workdir=run", program=ensemble)


@pytest.fixture(scope="module")
def singles(tmp_path_factory):
    """A folder with the runs of seeds 0 and 1, one model each."""
    folder = tmp_path_factory.mktemp("singles")
    for seed in (0, 1):
        invoke.run_in(folder, *SINGLE, f"--seed={seed}", f"--workdir=seed{seed}")
    return folder


@pytest.fixture
def runs(folder, singles):
    """The working directory, with the texts and a copy of both runs."""
    for seed in (0, 1):
        shutil.copytree(singles / f"seed{seed}", folder / f"seed{seed}")
    return folder


def exported(workdir):
    """The names of the members that were written."""
    return sorted(path.stem for path in (workdir / "members").glob("*.safetensors"))


def assert_same_ensemble(workdir, other):
    jax.tree.map(np.testing.assert_array_equal, stored(workdir), stored(other))
    assert untimed(metrics(workdir)) == untimed(metrics(other))
    actual, expected = summary_of(workdir), summary_of(other)
    assert actual["mixtures"] == expected["mixtures"]
    assert actual["members"] == expected["members"]


def test_ensemble_leaves_all_its_files_and_a_line_an_epoch(finished):
    folder, outcome = finished
    assert {path.name for path in (folder / "run").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "mixtures.png",
        "members",
        "checkpoints",
    }
    assert exported(folder / "run") == ["seed-0", "seed-1", "seed-2"]
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["members"], config["seed"]) == (3, 0)
    for epoch, line in enumerate(metrics(folder / "run"), 1):
        estimates = line["valid_perplexity_estimates"]
        assert len(estimates) == 3
        assert line["valid_perplexity_best"] == min(estimates) < max(estimates)
        assert line["valid_perplexity_worst"] == max(estimates)
        assert line["valid_perplexity_estimate"] == pytest.approx(np.mean(estimates))
        (printed,) = (x for x in outcome.out.splitlines() if x.startswith(f"{epoch}/2  "))
        assert f"  {min(estimates):8.2f}  {max(estimates):8.2f}  " in printed


def test_mixtures_of_one_are_the_mean_of_singles_and_more_members_are_better(finished):
    folder, outcome = finished
    summary = summary_of(folder / "run")
    rows, records = summary["mixtures"], summary["members"]
    assert [row["members"] for row in rows] == [1, 2, 3]
    assert [row["subsets"] for row in rows] == [3, 3, 1]
    for name in ("valid_perplexity", "test_perplexity"):
        singles = [member[name] for member in records]
        assert rows[0][name] == pytest.approx(np.mean(singles))
        assert rows[0][name] > rows[1][name] > rows[2][name] > 1
    assert f"{rows[1]['test_perplexity']:.2f} ± {rows[1]['test_spread']:.2f}" in outcome.out
    assert outcome.out.splitlines()[-1] == "all results are in run"


@pytest.mark.parametrize("seed", [0, 1])
def test_member_is_the_run_of_its_seed(finished, singles, seed):
    alone, together = summary_of(singles / f"seed{seed}"), summary_of(finished[0] / "run")
    member = together["members"][seed]
    assert member["seed"] == seed
    for name in ("valid_perplexity", "test_perplexity"):
        assert member[name] == pytest.approx(alone[name], rel=1e-5)
    own = load_model(singles / f"seed{seed}" / "model.safetensors")
    of_member = load_model(finished[0] / "run" / "members" / f"seed-{seed}.safetensors")
    assert of_member.config == own.config
    jax.tree.map(np.testing.assert_array_equal, of_member.params, own.params)


def test_runs_that_are_averaged_later_have_the_mixtures_of_their_models(runs):
    pair = run("--from=seed0,seed1", *TEXT, "--workdir=pair")
    assert pair.status == 0, pair.err
    summary = summary_of(runs / "pair")
    assert [row["members"] for row in summary["mixtures"]] == [1, 2]
    assert [member["run"] for member in summary["members"]] == ["../seed0", "../seed1"]
    again = run("--from=seed1,seed0", *TEXT, "--workdir=pair")
    assert again.status == 0, again.err
    assert [member["run"] for member in summary_of(runs / "pair")["members"]] == [
        "../seed1",
        "../seed0",
    ]
    models = [load_model(runs / f"seed{seed}" / "model.safetensors") for seed in (0, 1)]
    words = models[0].vocabulary
    for split in ("valid", "test"):
        ids = words.encode(words.tokenize((runs / f"{split}.txt").read_text()))
        nll = np.stack([text_nll(model, ids) for model in models])
        expected = [np.mean(list(map(perplexity, nll))), perplexity(mixture_nll(nll))]
        figures = [row[f"{split}_perplexity"] for row in summary["mixtures"]]
        assert figures == pytest.approx(expected, rel=1e-5)


def test_run_in_a_folder_of_any_name_can_be_averaged(runs):
    odd = (runs / "seed1").rename(runs / "my [v2], a\\b")
    alone = run(f"--from={odd.name}", *TEXT, "--workdir=[one]")
    assert alone.status == 0, alone.err


def test_what_is_no_finished_run_on_the_text_is_refused_before_any_is_evaluated(runs, monkeypatch):
    monkeypatch.setattr(SingleRun, "nll", None)  # is not reached
    config = runs / "seed1" / "config.json"
    original = config.read_text()
    config.write_text(original.replace('"epochs": 2', '"epochs": 3'))
    unfinished = "seed1: has trained on 238 of 357 windows; run its command"
    assert_refused(run("--from=seed0,seed1", *TEXT), unfinished)
    config.write_text(original)
    record = shutil.copytree(runs / "seed1", runs / "record")
    shutil.rmtree(record / "checkpoints")
    reason = "record: holds the record of a finished run without its checkpoints; name the folder"
    assert_refused(run("--from=seed0,record", *TEXT), reason)
    (runs / "train.txt").write_text("a b c d e f g h\n" * 200)
    assert_refused(run("--from=seed0,seed1", *TEXT), "seed0: holds a run on another text")


def test_average_of_other_runs_is_not_replaced_even_if_they_have_the_same_names(runs, monkeypatch):
    assert run("--from=seed0,seed1", *TEXT, "--workdir=pair").status == 0
    elsewhere = runs / "elsewhere"
    for seed in (0, 1):
        shutil.copytree(runs / f"seed{seed}", elsewhere / f"seed{seed}")
    before = content(runs)
    reason = "holds a run or an average of other models, whose summary would be lost"
    assert_refused(run("--from=seed1", *TEXT, "--workdir=pair"), f"--workdir=pair: {reason}")
    monkeypatch.chdir(elsewhere)
    refused = run("--from=seed0,seed1", *TEXT, "--workdir=../pair")
    assert_refused(refused, f"--workdir=../pair: {reason}")
    assert content(runs) == before


def test_averages_that_have_no_place_are_refused_before_the_work(folder, monkeypatch):
    for name in ("a", "mine"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "experiments/results/quick-seed0/config.json", "a")
    (folder / "mine" / "summary.json").write_text('{"members": [{"run": "../a"}]}')
    (folder / "mine" / "mixtures.png").write_text("mine")
    (folder / "nowhere").symlink_to("absent")
    monkeypatch.setattr(ensemble, "load_corpus", None)  # is not reached
    before = content(folder)
    for workdir, reason in (
        ("train.txt", "--workdir=train.txt/summary.json: nothing can be written in"),
        ("nowhere", "--workdir=nowhere/summary.json: nothing can be written in"),
        ("mine", "--workdir=mine/mixtures.png: exists and is not of this program; name another"),
    ):
        assert_refused(run("--from=a", f"--workdir={workdir}"), reason)
    assert content(folder) == before


def test_run_that_saves_while_it_is_averaged_is_not_called_damaged(runs, monkeypatch):
    later, restore = runs / "seed0" / "checkpoints" / "999", unfinished_runs.restore
    reads = []

    def overtaken(*arguments):
        reads.append(arguments)
        if len(reads) == 1:
            later.mkdir()
            raise DamagedCheckpointError("every checkpoint is damaged")
        if len(reads) == 2:
            later.rmdir()
        return restore(*arguments)

    monkeypatch.setattr(unfinished_runs, "restore", overtaken)
    outcome = run("--from=seed0", *TEXT, "--workdir=alone")
    assert outcome.status == 0, outcome.err
    assert len(reads) == 3  # once more to evaluate it


@pytest.mark.parametrize("at_once", [1, 2])
def test_interrupted_ensemble_ends_as_one_never_interrupted_whatever_is_trained_at_once(
    finished, folder, ctrl_c_after, at_once
):
    ctrl_c_after(3 * 2 + 2)  # the second member of the third chunk
    stopped = run(*MEMBERS, "--workdir=run")
    assert stopped.status == 128 + signal.SIGINT
    assert f"window {3 * CHUNK} of {WINDOWS}; saved in run" in stopped.out
    flags = (f"--members_at_once={at_once}", "--resident=false")  # its text is now on disk
    resumed = run(*MEMBERS, *flags, "--workdir=run")
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resuming run after epoch 0, window {3 * CHUNK}" in resumed.out
    if at_once == 1:
        return assert_same_ensemble(folder / "run", finished[0] / "run")
    actual, expected = (summary_of(path / "run")["mixtures"] for path in (folder, finished[0]))
    for row, other in zip(actual, expected, strict=True):
        assert row["test_perplexity"] == pytest.approx(other["test_perplexity"], rel=1e-5)


def test_member_that_diverges_is_said_and_excluded_and_stays_so(finished, folder, after_chunk):
    after_chunk(3 * 8 + 2, lambda states, x: (states, x.replace(nll=x.nll.at[0, 4].set(jnp.nan))))
    outcome = run(*MEMBERS, "--workdir=run")
    assert outcome.status == 0
    reason = f"the loss became nan at step {WINDOWS + CHUNK + 5} (epoch 2, window {CHUNK + 5})"
    assert f"member 1 (seed 1): {reason}; excluded from here on" in outcome.out
    assert f"without seed 1: {reason}" in outcome.out
    first, second = metrics(folder / "run")
    assert None not in first["valid_perplexity_estimates"]
    assert second["valid_perplexity_estimates"][1] is second["train_perplexities"][1] is None
    expected, summary = summary_of(finished[0] / "run"), summary_of(folder / "run")
    assert [row["members"] for row in summary["mixtures"]] == [1, 2]
    assert summary["members"][1] == {"seed": 1, "excluded": reason}
    assert exported(folder / "run") == ["seed-0", "seed-2"]
    for member in (0, 2):
        assert summary["members"][member] == expected["members"][member]
    before = content(folder)
    assert run(*MEMBERS, "--workdir=run").status == 0
    assert content(folder) == before


def test_member_that_diverges_in_further_epochs_leaves_no_model_of_fewer(
    finished, folder, after_chunk
):
    shutil.copytree(finished[0] / "run", folder / "run")
    after_chunk(2, lambda states, x: (states, x.replace(nll=x.nll.at[0, 4].set(jnp.nan))))
    outcome = run(*MEMBERS, "--epochs=3", "--workdir=run")
    assert outcome.status == 0
    assert "without seed 1: the loss became nan" in outcome.out
    assert exported(folder / "run") == ["seed-0", "seed-2"]


def test_member_whose_validation_perplexity_is_infinite_is_excluded(folder, monkeypatch):
    nll = ensemble_run.EnsembleRun._nll

    def of_first_epoch(run, params, ids, streams):
        member_nll = nll(run, params, ids, streams)
        if not run.journal.history:
            member_nll[2] = 800
        return member_nll

    monkeypatch.setattr(ensemble_run.EnsembleRun, "_nll", of_first_epoch)
    outcome = run(*MEMBERS, "--workdir=run")
    assert "member 2 (seed 2): the validation perplexity became inf; excluded" in outcome.out
    for line in metrics(folder / "run"):
        assert line["valid_perplexity_estimates"][2] is None
        assert np.isfinite(line["valid_perplexity_estimate"])


def test_member_whose_parameters_diverge_at_the_very_end_is_not_exported(folder, after_chunk):
    def break_it(states, statistics):
        bias = states.params.softmax.bias.at[0, 0].set(jnp.inf)
        softmax = dataclasses.replace(states.params.softmax, bias=bias)
        params = dataclasses.replace(states.params, softmax=softmax)
        return dataclasses.replace(states, params=params), statistics

    after_chunk(3 * (2 * WINDOWS // CHUNK - 1) + 2, break_it)
    assert run(*MEMBERS, "--workdir=run").status == 0
    reason = f"a parameter became infinite or NaN at step {2 * WINDOWS} (epoch 2, "
    assert summary_of(folder / "run")["members"][1]["excluded"].startswith(reason)
    assert exported(folder / "run") == ["seed-0", "seed-2"]


def test_ensemble_whose_members_all_diverge_fails_and_keeps_its_last_checkpoint(folder):
    flags = ("--learning_rate=1e30", "--clip_norm=1e30", "--workdir=run")
    outcome = run(*MEMBERS, *flags)
    assert_refused(outcome, "the last of 3 members", "try a lower --learning_rate", status=1)
    assert "member 0 (seed 0): the loss became" in outcome.out
    assert not (folder / "run" / "summary.json").exists()


@pytest.mark.parametrize("share", [4, 5], ids=["too long to lie there", "on the device"])
def test_members_at_once_leave_room_for_the_text(share):
    corpus, config = toy_corpus(), override(QUICK, hidden_size=1, unroll=1, batch_size=1)
    text = ensemble_run.training_windows(config, corpus).nbytes
    memory = share * text - (share == 4)
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": memory})
    mesh: Any = SimpleNamespace(local_devices=[device], shape={MEMBER: 1})
    words = len(corpus.vocabulary)
    fitting = [members_that_fit(config, words, 250, budget) for budget in (memory, memory - text)]
    assert ensemble_run.default_at_once(config, corpus, 250, mesh) == fitting[share == 5]
    assert 1 < fitting[1] < fitting[0] < 250
    for resident in (True, False):  # as asked, whether it fits or not
        at_once = ensemble_run.default_at_once(config, corpus, 250, mesh, resident)
        assert at_once == fitting[resident]


def test_kernel_is_measured_for_the_members_that_a_device_trains_together(monkeypatch):
    def measured(config, corpus, workdir, console, members, resident):
        raise InterruptedError(members, resident)

    monkeypatch.setattr(opened_runs, "at_once_on", lambda *_: 10)
    monkeypatch.setattr(opened_runs, "with_kernel", measured)
    mesh, anything = SimpleNamespace(shape={MEMBER: 4}), cast(Any, None)
    with pytest.raises(InterruptedError) as told:
        opened_runs.open_ensemble(
            QUICK, [QUICK] * 10, anything, cast(Any, mesh), anything, anything
        )
    assert told.value.args == (3, 3)


BAD_FLAGS = [
    (["--members=0"], ["members=0", "see --help"]),
    (["--members=200000000"], ["members=200000000", "see --help"]),
    (["--members_at_once=0"], ["members_at_once=0", "see --help"]),
    (["--members=3", "--sizes=1,4"], ["--sizes=4: there are 3 members; give numbers from 1 up"]),
    (["--sizes=two"], ["--sizes=two", "give numbers"]),
    (
        ["--patience=1", "--train_file=absent", "--valid_fraction=0.1", "--test_fraction=0.1"],
        ["patience=1: models that train side by side"],
    ),
    (
        ["--members=1000", "--hidden_size=20000"],
        ["1000 models on a device, layers=2, hidden_size=20000, 884 types: the", "or fewer"],
    ),
    (["--from=a,b", "--patience=1"], ["--from: the runs are trained", "leave out --patience"]),
    (["--seed=4294967295", "--members=2"], ["seed=4294967296", "below 4294967296"]),
    (["--data_parallel=7"], ["data_parallel=7: does not divide the 1 devices"]),
    (["--process_id=0"], ["--num_processes, --process_id: give --coordinator_address"]),
    (["--coordinator_address=a:1"], ["--coordinator_address=a:1: needs --num_processes and"]),
    (["--coordinator_address=a"], ["--coordinator_address=a: must be HOST:PORT, or cluster"]),
    (["--from=a,b", "--coordinator_address=cluster"], ["--from: one process averages; leave"]),
    (["--from=absent"], ["absent: holds no run of experiments.ptb", "name the --workdir of one"]),
    (["--from=a,./a"], ["--from=a,./a: a run is named twice"]),
    (["--from=a,b", "--members=2"], ["--from: the runs are trained", "leave out --members"]),
    (
        ["--from=a,b", "--config=small", "--data_parallel=2"],
        ["leave out --config, --data_parallel"],
    ),
    (["--from="], ["--from: names no run; give folders, separated by commas"]),
    (["--from=a,b", "--sizes=3"], ["--sizes=3: there are 2 members"]),
]


@pytest.mark.parametrize(
    ("flags", "telling"), BAD_FLAGS, ids=[" ".join(flags) for flags, _ in BAD_FLAGS]
)
def test_bad_flag_is_refused_and_nothing_is_written(folder, flags, telling):
    before = content(folder)
    assert_refused(run(*flags), *telling)
    assert content(folder) == before


def test_folder_of_other_members_is_refused_naming_both_values(finished, folder):
    shutil.copytree(finished[0] / "run", "run")
    (folder / "a").mkdir()
    shutil.copy(invoke.ROOT / "experiments/results/quick-seed0/config.json", "a")
    before = content(folder)
    outcome = run(*SINGLE, "--members=4", "--workdir=run")
    assert_refused(outcome, "members (3 there, 4 here);")
    assert_refused(run("--from=run", *TEXT), "run: holds no run of experiments.ptb")
    refused = run("--from=a", "--workdir=run")
    assert_refused(refused, "--workdir=run: holds a run or an average of other models")
    refused = run("--from=a", *TEXT)
    assert_refused(refused, "--train_file: is your own text, but this run reads toy; leave out")
    assert_refused(run("--from=a", "--data_dir=b"), "--data_dir=b: holds a published corpus")
    assert content(folder) == before
