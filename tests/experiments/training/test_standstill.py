"""Runs that learn nothing, and what they say of it."""

import shutil
from types import SimpleNamespace
from typing import Any

import invoke
import pytest
from invoke import CONFIG

from experiments.training.journal import Journal
from experiments.training.standstill import standstill
from zaremba_jax.config import override
from zaremba_jax.data.corpus import make_corpus

# 2 by frequencies; the test text has 4
CORPUS = make_corpus("text", list("aabc"), list("baaa"), list("ab"))


def said(*estimates, epochs=4, rates=None, **changes):
    """The lines after each epoch of a run with these estimates, of one model or several each."""
    config = override(CONFIG, epochs=epochs, dropout=0.0, **changes)
    pairs = [pair if isinstance(pair, tuple) else (pair,) for pair in estimates]
    models = len(pairs[0])
    configs = [override(config, learning_rate=rate) for rate in rates or [1.0] * models]
    run: Any = SimpleNamespace(config=config, all_configs=configs, corpus=CORPUS, windows=[0])
    run.journal, lines = Journal([0.0] * models), []
    for run.step, pair in enumerate(pairs, start=1):
        record = {"valid_perplexity_estimate": pair[0], "valid_perplexity_estimates": pair}
        run.journal.end_epoch(record, 0.0)
        lines.append(standstill(run))
    return lines


def test_model_that_learns_says_nothing():
    assert said(3.0, 1.9, 1.95, 1.8) == [[]] * 4
    assert said(9.0, 7.0, 5.0) == [[]] * 3  # not yet
    assert said(3.0, 1.9, 2.5, 2.6) == [[]] * 4  # it learned, and overfits


@pytest.mark.parametrize("estimates", [(3.0, 3.1, 3.05, 3.2), (3.0, 3.5, 2.5, 2.0)])
def test_model_no_better_than_frequencies_and_not_improving_says_so(estimates):
    first, second, third, last = said(*estimates, l2=1e25)
    assert (first, third) == ([], [])
    assert second == last
    assert last == [
        "the model has learned nothing beyond how often each word occurs (a validation"
        " perplexity of 2.00); try a lower --l2, another --learning_rate or more epochs"
    ]


def test_text_of_characters_is_one_of_characters():
    *_, (line,) = said(3.0, 3.1, 3.05, 3.2, unit="char")
    assert "beyond how often each character occurs" in line


def test_rate_that_decay_has_brought_to_nothing_has_a_remedy_of_its_own():
    *_, (line,) = said(1.5, 1.4, 1.3, 1.3, constant_epochs=0, decay_divisor=10.0)
    assert line == (
        "the parameters no longer change; try a lower --decay_divisor, since the learning rate is"
        " 0.0001 now, or fewer --epochs"
    )


def test_of_many_models_those_that_stand_still_are_named():
    _, (line,) = said((1.5, 1.5, 1.5), (1.4, 1.5, 1.5))
    assert line.startswith("members 1, 2: the parameters no longer change; try another")
    _, (line,) = said((1.5, 1.5), (1.4, 1.5))
    assert line.startswith("member 1: the parameters no longer change")
    _, (line,) = said((1.5, 1.5, 1.5), (1.4, 1.5, 1.5), rates=[1.0, 0.5, 1e-9])  # of a sweep
    assert line.startswith("learning_rate 0.5; learning_rate 1e-09: the parameters no longer")
    (line,) = said((1.5, 1.5), (1.5, 1.5), rates=[20240101.0, 0.12345678])[-1]
    assert line.startswith("learning_rate 20240101.0; learning_rate 0.12345678: the parameters")


def test_run_that_stands_still_says_so_when_it_is_first_seen_and_at_the_end(folder):
    outcome = invoke.run(*invoke.SINGLE, "--learning_rate=1e-30", "--epochs=4", "--workdir=run")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("the parameters no longer change; try a lower --dropout, another") == 2


def test_run_whose_cached_text_is_tidied_away_still_knows_how_often_each_word_occurs(
    folder, after_chunk
):
    def tidy(*result):
        shutil.rmtree("cache")
        return result

    after_chunk(1, tidy)
    flags = ("--learning_rate=1e-30", "--cache_dir=cache", "--workdir=run")
    outcome = invoke.run(*invoke.SINGLE, *flags)
    assert outcome.status == 0, outcome.err
    assert "the parameters no longer change" in outcome.out
    assert f"{invoke.summary_of(folder / 'run')['unigram_perplexity']:.2f}" in outcome.out
