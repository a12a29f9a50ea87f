"""Tells that models learn nothing, which finite losses hide.

Too strong a penalty, too low a rate and saturated gates look alike from outside: the validation
estimate is no better than that of word frequencies, or it stays the same to the last digit.
"""

import functools

from experiments.training.run import Run, is_finished, names_of, position, rate_of_epoch
from zaremba_jax.data.corpus import Corpus, unigram_perplexity
from zaremba_jax.data.units import UNITS
from zaremba_jax.regularizers import active_rates

_VANISHED = 1e-3  # of the first learning rate


class StandstillNews:
    """The lines of `standstill` to tell after each epoch: new ones, and all when the run ends."""

    def __init__(self):
        self._told: set[str] = set()

    def of_epoch(self, run: Run) -> list[str]:
        """Those of the epoch that has just ended."""
        lines = standstill(run)
        news = [line for line in lines if line not in self._told or is_finished(run)]
        self._told.update(lines)
        return news


def standstill(run: Run) -> list[str]:
    """A line on each way in which live models did not learn in the last epoch."""
    members: dict[str, list[int]] = {}
    several = len(run.all_configs) > 1
    for index in run.journal.live:
        if problem := _problem(run, run.journal.estimates(index)):
            members.setdefault(problem, []).append(index)
    return [
        f"{names_of(run, indices) + ': ' if several else ''}{problem};"
        f" try {_remedy(run, indices[0])}"
        for problem, indices in members.items()
    ]


def _problem(run: Run, estimates: list[float]) -> str | None:
    """What a model's estimates so far show, if it is not learning."""
    *before, last = estimates[-2:]
    if before and last == before[0]:
        return "the parameters no longer change"
    is_getting_better = not before or last < before[0]
    if is_getting_better and len(estimates) < run.config.train.epochs:
        return None
    frequencies = _frequencies(run.corpus)
    if frequencies is not None and min(estimates) >= frequencies:  # it may overfit since
        noun = UNITS[run.config.unit].noun
        return (
            f"the model has learned nothing beyond how often each {noun} occurs (a validation"
            f" perplexity of {frequencies:.2f})"
        )
    return None


@functools.lru_cache(maxsize=1)
def _frequencies(corpus: Corpus) -> float | None:
    return unigram_perplexity(corpus, "valid")


def _remedy(run: Run, index: int) -> str:
    rate, train = rate_of_epoch(run, index, position(run)[0]), run.all_configs[index].train
    if rate < _VANISHED * train.learning_rate:
        return (
            f"a lower --decay_divisor, since the learning rate is {rate:.1g} now, or fewer --epochs"
        )
    rates = active_rates(run.all_configs[index].regularizers)
    lower = f"a lower --{' or --'.join(rates)}, " if rates else ""
    return f"{lower}another --learning_rate or more epochs"
