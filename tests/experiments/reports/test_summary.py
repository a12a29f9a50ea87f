import dataclasses
import io
import re

import numpy as np
import pytest
from model_examples import model_of
from rich.console import Console

from experiments.reports.summary import print_mixtures, print_summary, summarize, summarize_mixtures
from experiments.training.journal import Journal
from experiments.training.single_run import SingleRun
from zaremba_jax.config import ComputeConfig, override, settings, to_dict
from zaremba_jax.data.corpus import make_corpus, unigram_perplexity
from zaremba_jax.data.loader import WindowLoader
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.windows import TextWindows
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.presets import PAPER_PERPLEXITIES, QUICK, SMALL
from zaremba_jax.train import init_train_state

CORPUS = make_corpus("ours", list("abcaba") * 5, list("abc") * 4, list("cba") * 6)
TINY = override(QUICK, layers=2, hidden_size=4, batch_size=2, unroll=5)
COMPUTE = {field.name for field in dataclasses.fields(ComputeConfig)}
HISTORY = [
    {"words_per_second": speed, "valid_perplexity_estimate": estimate}
    for speed, estimate in ((1.0, 9.0), (500.0, 7.0), (400.0, 8.0))
]


def summarized(run, **options):
    return summarize(run, run.nll(CORPUS.valid), run.nll(CORPUS.test), **options)


def summary_of(config, **changes):
    """The summary of a tiny untrained model presented as one of a configuration."""
    text = TextWindows(CORPUS.train, TINY.train.batch_size, TINY.train.unroll)
    state = init_train_state(TINY, len(CORPUS.vocabulary))
    journal = Journal([0.0], history=HISTORY, seconds=2.5)
    run = SingleRun(config, CORPUS, WindowLoader(text), state, journal=journal)
    return summarized(dataclasses.replace(run, **changes))


def paper_figures(summary):
    return summary["paper_valid_perplexity"], summary["paper_test_perplexity"]


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_paper_s_figures_belong_to_its_preset_whatever_the_seed(seed):
    summary = summary_of(override(SMALL, seed=seed))
    assert paper_figures(summary) == PAPER_PERPLEXITIES["small"][1] == (120.7, 114.5)
    assert summary["seed"] == seed


@pytest.mark.parametrize("name", sorted(settings().keys() - COMPUTE - {"name", "seed"}))
def test_paper_s_figures_belong_to_no_other_setting(name):
    value = to_dict(SMALL)[name]
    words = {"corpus": "toy", "cell": "gru", "mask_each": "window", "unit": "char", "keep": "best"}
    words |= {"vocabulary": "0f", "init_from": "0f", "optimizer": "adam"}
    switches = dict.fromkeys(
        ("tie_weights", "second_bias", "carry_over_epochs", "random_offset"), True
    )
    numbers = {"embedding_size": 7, "decay_divisor": 4.0}
    numbers |= {"input_dropout": 0.5, "output_dropout": 0.5}
    other = (words | switches | numbers).get(name) or (
        value + 1 if isinstance(value, int) else float(value or 0) / 2 or 0.5
    )
    changes = {name: other} | ({"learning_rate": 0.01} if other == "adam" else {})
    assert paper_figures(summary_of(override(SMALL, **changes))) == (None, None)


@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, {"kernel": "scan"}, {"softmax_tokens": 7}]
)
def test_paper_s_figures_belong_to_its_preset_however_it_is_computed(changes):
    assert changes.keys() <= COMPUTE
    assert paper_figures(summary_of(override(SMALL, **changes))) == (120.7, 114.5)


def test_perplexities_are_in_the_precision_of_the_run():
    summary = summary_of(override(TINY, precision="bfloat16"))
    params = init_train_state(TINY, len(CORPUS.vocabulary)).params
    exact, rounded = (
        perplexity(text_nll(model_of(params, override(TINY, precision=precision)), CORPUS.test))
        for precision in ("float32", "bfloat16")
    )
    assert summary["test_perplexity"] == rounded != exact


def test_quick_has_no_figures_of_the_paper():
    assert paper_figures(summary_of(QUICK)) == (None, None)


def test_figures_are_those_of_the_reported_protocol():
    summary = summary_of(TINY)
    model = model_of(init_train_state(TINY, len(CORPUS.vocabulary)).params, TINY)
    assert summary["valid_perplexity"] == perplexity(text_nll(model, CORPUS.valid, streams=1))
    assert summary["test_perplexity"] == perplexity(text_nll(model, CORPUS.test, streams=1))
    assert summary["mc_test_perplexity"] is None
    assert summary["unigram_perplexity"] == unigram_perplexity(CORPUS)
    assert summary["floor_perplexity"] is None
    assert summary["parameters"] == (3 * 4) + 2 * (2 * 4 * 16 + 16) + (4 * 3 + 3)


def test_monte_carlo_averages_over_noise_and_equals_the_protocol_without_any():
    without = override(TINY, dropout=0.0)
    text = TextWindows(CORPUS.train, TINY.train.batch_size, TINY.train.unroll)

    def summary(config):
        state = init_train_state(config, len(CORPUS.vocabulary))
        journal = Journal([0.0], history=HISTORY)
        run = SingleRun(config, CORPUS, WindowLoader(text), state, journal=journal)
        return summarized(run, mc_samples=3)

    same, noisy = summary(without), summary(override(TINY, dropout=0.5))
    assert same["mc_test_perplexity"] == pytest.approx(same["test_perplexity"], rel=1e-5)
    assert same["mc_valid_perplexity"] == pytest.approx(same["valid_perplexity"], rel=1e-5)
    assert noisy["mc_test_perplexity"] != pytest.approx(noisy["test_perplexity"], rel=1e-5)
    assert noisy == summary(override(TINY, dropout=0.5))


def test_zoneout_is_evaluated_by_its_expectation():
    config = override(TINY, zoneout_hidden=0.25, zoneout_cell=0.5)
    params = init_train_state(TINY, len(CORPUS.vocabulary)).params
    nll = text_nll(model_of(params, config), CORPUS.test)
    assert summary_of(config)["test_perplexity"] == perplexity(nll)
    assert summary_of(TINY)["test_perplexity"] != perplexity(nll)


def test_summary_says_what_the_estimates_decided():
    assert not summary_of(TINY).keys() & {"best_epoch", "averaged_from_epoch"}
    summary = summary_of(override(TINY, keep="best", average_after_stall=5, average_from=3))
    assert (summary["best_epoch"], summary["averaged_from_epoch"]) == (2, 3)


def test_speed_is_the_median_epoch_s_so_that_compilation_does_not_count():
    summary = summary_of(TINY)
    assert summary["words_per_second"] == 400.0
    assert summary["seconds"] == 2.5


def test_floor_is_the_corpus_s():
    corpus = dataclasses.replace(CORPUS, floor_perplexity=1.5)
    assert summary_of(TINY, corpus=corpus)["floor_perplexity"] == 1.5


def rows(**figures):
    """The table's rows by their labels."""
    summary = {
        "name": "small",
        "config": to_dict(SMALL),
        "corpus": "ours",
        "unit": "word",
        "valid_bits": 1.2344,
        "test_bits": 1.2,
        "valid_perplexity": 90.126,
        "test_perplexity": 80.25,
        "unigram_perplexity": 700.5,
        "mc_samples": 8,
        "mc_valid_perplexity": None,
        "mc_test_perplexity": None,
        "paper_valid_perplexity": None,
        "paper_test_perplexity": None,
        "floor_perplexity": None,
    }
    file = io.StringIO()
    print_summary(Console(file=file, width=80), summary | figures)
    lines = [line.split("│")[1:-1] for line in file.getvalue().splitlines() if "│" in line]
    return {label.strip(): (valid.strip(), test.strip()) for label, valid, test in lines}


def test_table_has_bits_for_characters_and_bytes():
    assert rows(unit="char")["bits per character"] == ("1.234", "1.200")
    assert rows(unit="byte")["bits per byte"] == ("1.234", "1.200")


def test_table_leaves_out_what_has_no_figure():
    assert rows() == {"this run": ("90.13", "80.25"), "unigram": ("", "700.50")}


def test_table_shows_what_the_run_is_to_be_read_against():
    assert rows(
        mc_valid_perplexity=89.0,
        mc_test_perplexity=79.5,
        paper_valid_perplexity=120.7,
        paper_test_perplexity=114.5,
        floor_perplexity=31.2,
    ) == {
        "this run": ("90.13", "80.25"),
        "Monte Carlo, 8 samples": ("89.00", "79.50"),
        "the paper": ("120.70", "114.50"),
        "floor of the source": ("", "31.20"),
        "unigram": ("", "700.50"),
    }


@pytest.mark.parametrize(
    ("other", "name", "paper"),
    [
        ({"seed": 1}, "small", ["100.4 / 96.1"]),
        ({"dropout": 0.5}, "small and small-dropout=0.5", []),
    ],
)
def test_averages_stand_next_to_the_papers_if_all_are_its_model(other, name, paper):
    corpus = make_corpus("ours", list("ab"), list("ab"), list("aba"))
    nll, file = np.log([[2.0, 2.0], [4.0, 4.0]]), io.StringIO()
    configs = [SMALL, override(SMALL, **other)]
    summary = summarize_mixtures(configs, corpus, nll, nll + 1, [2])
    print_mixtures(Console(file=file, width=80), summary)
    assert re.findall(r"\d+\.\d / \d+\.\d", file.getvalue()) == paper
    assert "bits" not in file.getvalue()
    title, _, _ = file.getvalue().partition("┏")
    assert " ".join(title.split()) == f"Perplexity: ours, {name}"
    assert re.search(r"2\.67\D+7\.25", file.getvalue())


def test_averages_of_models_of_characters_have_bits_and_huge_perplexities_an_exponent():
    vocabulary = Vocabulary(("a", "b", "c"), unit="char")
    corpus = dataclasses.replace(CORPUS, vocabulary=vocabulary)
    nll, file = np.log([[4.0, 4.0]]), io.StringIO()
    summary = summarize_mixtures([QUICK], corpus, nll, nll * 50, [1])
    assert (summary["unit"], summary["mixtures"][0]["valid_bits"]) == ("char", pytest.approx(2))
    print_mixtures(Console(file=file, width=80), summary)
    assert "bits per character" in file.getvalue()
    assert "2.000 / 100.000" in file.getvalue()
    assert "1.3e+30" in file.getvalue()
