"""The ablation end to end at a tiny size, and the rules that make it fair."""

import fcntl
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import ROOT, assert_refused, content, run_elsewhere
from model_examples import model_of

from experiments.ablations import language_modelling, memory
from experiments.ablations.language_modelling import (
    choose_and_test,
    compare_language_models,
    train_epoch,
)
from experiments.ablations.methods import METHODS, groups
from experiments.ablations.report_page import language_table, memory_table, report_page
from zaremba_jax.config import override
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.data.windows import windows
from zaremba_jax.evaluate import text_nll
from zaremba_jax.presets import QUICK

TINY = ("--train_tokens=400", "--hidden_size=4", "--epochs=2", "--seeds=2", "--rates=2")
PICTURES = {"final_perplexities.png", "language_modelling.png", "memory.png"}
FILES = {"report.md", "results.json", *PICTURES}
SMALLER = """
from experiments.ablations import memory
memory.TEST_SEQUENCES, memory.SETTINGS = 50, {"tanh": {"hidden_size": 4}}
"""


def run(*lines, cwd):
    """Runs the program on each list of flags, all in one other process."""
    return run_elsewhere("experiments.ablation", *lines, cwd=cwd, before=SMALLER)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run on one cell: its folder, its results and its outcome."""
    folder = tmp_path_factory.mktemp("ablation")
    memory = ("--memory_steps=8", "--memory_lags=3")
    (outcome,) = run((f"--workdir={folder}", *TINY, "--cells=tanh", *memory), cwd=folder)
    assert outcome.status == 0, outcome.err
    return folder, json.loads((folder / "results.json").read_text()), outcome


@pytest.mark.slow
def test_run_leaves_its_report_and_figures(finished):
    folder, _, outcome = finished
    assert {path.name for path in folder.iterdir()} == FILES
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (folder / "report.md").read_text(encoding="utf-8")
    assert "non-recurrent dropout" in outcome.out


@pytest.mark.slow
def test_every_method_has_as_many_candidates_seeds_and_epochs(finished):
    _, results, _ = finished
    assert list(results["language_modelling"]["tanh"]) == list(METHODS)
    for name, record in results["language_modelling"]["tanh"].items():
        assert len(record["candidates"]) == (1 if name == "none" else 2)
        assert np.shape(record["curves"]) == (2, 2)
        assert len(record["test"]) == 2
        assert min(record["test"]) > results["floor_perplexity"]


@pytest.mark.slow
def test_memory_has_every_method_seed_and_bin(finished):
    _, results, _ = finished
    assert results["learning_rates"] == {"tanh": 0.2}  # of no other cell
    assert results["memory"]["steps"] == 10  # as many as were trained, in whole chunks
    cell_results = results["memory"]["cells"]["tanh"]
    assert cell_results["bins"] == [[1, 1], [2, 2], [3, 3]]
    assert list(cell_results["methods"]) == list(memory.METHODS)
    for record in cell_results["methods"].values():
        accuracy = np.array(record["accuracy"])
        assert accuracy.shape == (2, 3)
        assert ((accuracy >= 0) & (accuracy <= 1)).all()
        assert np.isfinite(record["nats"]).all()


@pytest.mark.slow
def test_report_is_made_of_the_results_alone(finished):
    folder, results, _ = finished
    assert report_page(results) == (folder / "report.md").read_text(encoding="utf-8")


def test_report_of_one_seed_speaks_of_no_others():
    recorded = json.loads((ROOT / "experiments/results/ablation/results.json").read_text())
    assert report_page(recorded).count(" over seeds") == 2
    assert " over seeds" not in report_page(recorded | {"seeds": 1})


@pytest.mark.slow
def test_corruption_is_in_the_report(finished):
    folder, _, _ = finished
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "| ordinary dropout | 4 | 13 | 103 |" in text
    assert "| non-recurrent dropout | 3 | 3 | 3 |" in text


@pytest.mark.slow
def test_member_trains_in_company_as_it_does_alone(finished):
    _, results, _ = finished
    corpus = toy_corpus(valid_tokens=language_modelling.VALIDATION_TOKENS)
    corpus.train.resize(400, refcheck=False)
    base = override(
        QUICK,
        **{"dropout": 0.0, "layers": 1, "hidden_size": 4, "batch_size": 8, "epochs": 2},
        **{"constant_epochs": 1, "decay_divisor": 1.5},
    )
    alone = compare_language_models(
        base, corpus, "tanh", ["non_recurrent"], seeds=2, count=2, on_progress=lambda _: None
    )["non_recurrent"]
    company = results["language_modelling"]["tanh"]["non_recurrent"]
    assert alone["chosen"] == company["chosen"]
    np.testing.assert_allclose(alone["curves"], company["curves"], rtol=1e-4)
    np.testing.assert_allclose(alone["test"], company["test"], rtol=1e-4)


def test_model_is_kept_from_the_epoch_that_validated_best():
    config = override(QUICK, layers=1, hidden_size=3, batch_size=2, unroll=4)
    ids = np.tile(np.array([0, 2, 1, 3], np.int32), 21)
    text = jnp.asarray(windows(ids, 2, 4))
    members = language_modelling._init(config, 4, seeds=2, copies=1)
    best, trained = [], []
    for rate in (1.0, 1e3, 0.5):  # the second breaks what the first learned
        rates = {"learning_rate": jnp.full(2, rate)}
        members, nll = train_epoch(config, members, rates, text, text)
        best.append(jax.tree.map(np.array, (members.best, members.best_nll, nll)))
        trained.append(jax.tree.map(np.array, members.state.params))
    first = trained[0]
    for kept, kept_nll, nll in best:
        jax.tree.map(np.testing.assert_array_equal, kept, first)
        np.testing.assert_array_equal(kept_nll, best[0][2])
        assert (nll >= kept_nll).all()
    for member in range(2):
        model = model_of(jax.tree.map(lambda x, member=member: x[member], first))
        halves = np.split(ids, 2)  # the streams, in whole windows
        expected = [text_nll(model, half[: len(half) // 4 * 4 + 1]).mean() for half in halves]
        assert best[0][1][member] == pytest.approx(np.mean(expected), rel=1e-5)


def test_only_the_cells_asked_for_that_have_settings_learn_the_memory_task():
    def cells(*asked, steps=1):
        parts = memory.memory_parts(asked, rate=0.5, lags=3, steps=steps, seeds=1)
        return [part.cell for part in parts]

    assert cells("gru", "lstm", "tanh") == ["tanh", "lstm"]
    assert (cells("lstm", "gru"), cells("gru"), cells("lstm", steps=0)) == (["lstm"], [], [])


def test_methods_of_the_memory_task_see_the_same_and_have_rates_of_their_own(monkeypatch):
    trained = []

    def learn(config, learners, rates, count):
        trained.append((np.asarray(jax.random.key_data(learners.key)), rates))
        return learners, np.arange(6.0)[:, None] * np.ones(count)

    monkeypatch.setattr(memory, "learn", learn)
    monkeypatch.setattr(memory, "TEST_SEQUENCES", 5)
    monkeypatch.setitem(memory.SETTINGS, "tanh", {"hidden_size": 2})
    settings = {"rate": 0.4, "lags": 3, "steps": 2, "seeds": 2}
    results = memory.compare_memories("tanh", **settings, on_progress=lambda _: None)
    keys, rates = trained[0]
    for start, (method, on) in zip((0, 2, 4), memory.METHODS.items(), strict=True):
        np.testing.assert_array_equal(keys[start : start + 2], keys[:2])
        for name in ("dropout", "hidden_dropout"):
            np.testing.assert_allclose(rates[name][start : start + 2], 0.4 * (name in on))
        assert results["methods"][method]["nats"] == [start, start + 1]
    assert (keys[0] != keys[1]).any()


def chosen_by(valid):
    """The index of the candidate with these perplexities that is chosen."""
    return choose_and_test([{}] * len(valid), valid, {}, lambda _: 1.0)["chosen"]


def test_choice_is_of_the_lowest_mean_of_the_best_epochs():
    valid = np.array([[[9, 3], [9, 5]], [[2, 9], [8, 9]], [[4.5, 4], [4, 3.5]]])
    assert chosen_by(valid) == 2


def test_candidate_with_a_seed_that_diverged_is_never_chosen():
    valid = np.array([[[1, np.nan], [1, 1]], [[7, 7], [7, 7]], [[1, np.inf], [1, 1]]])
    assert chosen_by(valid) == 1
    assert chosen_by(valid[[0, 2]]) is None


def test_test_text_is_read_with_the_chosen_candidate_alone():
    read = []

    def test_perplexity(params):
        read.append(params["name"])
        return 1.0

    names = {"name": np.array([["a0", "a1"], ["b0", "b1"]])}
    valid = np.array([[[5.0], [5.0]], [[3.0], [4.0]]])
    record = choose_and_test([{"l2": 1.0}, {"l2": 2.0}], valid, names, test_perplexity)
    assert read == ["b0", "b1"]
    assert record["chosen"] == 1
    assert [x["validation"] for x in record["candidates"]] == [5.0, 3.5]


def test_seeds_that_diverged_are_counted_and_not_averaged():
    valid = np.array([[[np.nan], [2.0]]])
    record = choose_and_test([{"l2": 1.0}], valid, {}, lambda _: 1.0)
    assert record["candidates"] == [{"rates": {"l2": 1.0}, "validation": None, "diverged": 1}]
    assert (record["chosen"], record["test"], record["curves"]) == (None, [], [])


def test_every_method_has_the_same_number_of_candidates():
    sizes = {len(values) for method in METHODS.values() for values in method.grid.values()}
    assert sizes == {3}


def test_only_masks_for_a_window_are_in_a_program_of_their_own():
    assert groups(["non_recurrent", "variational", "none"]) == [
        ["none", "non_recurrent"],
        ["variational"],
    ]


def test_table_has_mean_deviation_rate_and_floor():
    chosen = {"candidates": [{"rates": {"l1": 0.1, "l2": 0.1}}], "chosen": 0, "test": [3.0, 5.0]}
    lost = {"candidates": [{"rates": {"l2": 0.1}}], "chosen": None, "test": []}
    results = {
        "language_modelling": {"gru": {"elastic_net": chosen, "l2": lost}},
        "titles": {"elastic_net": "elastic net", "l2": "L2"},
        "floor_perplexity": 2.04,
    }
    assert language_table(results).splitlines()[2:] == [
        "| elastic net | 4.0 ± 1.4 (0.1) |",
        "| L2 | not finite |",
        "| floor of the source | 2.0 |",
    ]


def test_memory_table_has_a_column_a_bin():
    methods = {"no dropout": {"accuracy": [[1.0, 0.5], [0.5, 0.25]], "nats": [0.5, 0.7]}}
    table = memory_table({"tanh": {"bins": [(1, 1), (2, 4)], "methods": methods}})
    assert "| 1 | 2-4 | nats" in table.splitlines()[0]
    assert table.splitlines()[2] == "| tanh | no dropout | 0.75 | 0.38 | 0.60 |"


MISTAKES = {
    "--methods=l3": "non_recurrent",
    "--methods=": "non_recurrent",
    "--cells=rnn": "lstm, gru, tanh",
    "--seeds=0": "seeds=0: 0 is not a positive integer",
    "--rates=4": "rates=4: 4 is not an integer in the range [1, 3]",
    "--train_tokens=100": "168",
    "--memory_rate=1": "memory_rate=1: 1.0 is not a number in the range [0.01, 0.99]",
    "--data_dir=ptb": "--corpus=ptb",
    "--memory_lags=500 --memory_steps=0": "--memory_lags: has no effect with --memory_steps=0",
    "--corpus=files": "value should be one of <toy|ptb>",
    "--workdir=a_file": "a_file: file exists; name another",
    "--workdir=mine": "--workdir=mine/report.md: exists and is not of this program; name another",
    "--workdir=drawn": "--workdir=drawn/final_perplexities.png: exists and is not of this program",
    "--workdir=beside": "--workdir=beside/memory.png: exists and is not of this program",
    "--workdir=held": "held: holds a report of other settings, or a damaged one; name another",
}


def test_folder_in_which_another_process_measures_is_refused(tmp_path):
    (tmp_path / "held").mkdir()
    lock = os.open(tmp_path / "held", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (outcome,) = run([*TINY, "--workdir=held"], cwd=tmp_path)
    os.close(lock)
    assert_refused(outcome, "held: another process", "name another --workdir")


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    (folder / "a_file").touch()
    for name in ("beside", "drawn", "held", "mine"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "experiments/results/ablation/results.json", folder / "beside")
    (folder / "beside" / "memory.png").write_text("mine")
    (folder / "mine" / "report.md").write_text("mine")
    (folder / "drawn" / "final_perplexities.png").write_text("mine")
    (folder / "held" / "results.json").write_text('{"asked": {"seeds": 9}}')
    before = content(folder)
    outcomes = dict(zip(MISTAKES, run(*map(str.split, MISTAKES), cwd=folder), strict=True))
    written = content(folder).items() - before.items()
    assert not [path for path, data in written if data is not None]
    return outcomes


@pytest.mark.parametrize("flag", MISTAKES)
def test_mistake_is_refused_in_one_line(refused, flag):
    assert_refused(refused[flag], MISTAKES[flag])


def test_report_of_other_settings_is_not_to_be_removed(refused):
    assert refused["--workdir=held"].err.endswith("or a damaged one; name another\n")


def test_penn_treebank_is_read_without_the_built_in_corpus(tmp_path):
    before = "from zaremba_jax.data import toy_corpus\ntoy_corpus.toy_corpus = None"
    line = ["--corpus=ptb", "--data_dir=absent"]
    (outcome,) = run_elsewhere("experiments.ablation", line, cwd=tmp_path, before=before)
    assert_refused(outcome, "absent")


def test_a_network_learns_to_recall_over_few_steps():
    config = memory.task_config("tanh", 2, hidden_size=16, learning_rate=0.01)
    learners = jax.vmap(functools.partial(memory.init_learner, config))(jnp.arange(1))
    rates = {name: jnp.zeros(1) for name in ("dropout", "hidden_dropout")}
    with jax.numpy_dtype_promotion("standard"):  # for optax's Adam
        _, losses = memory.learn(config, learners, rates, 150)
    assert losses[0, -10:].mean() < 1 < losses[0, :5].mean()
