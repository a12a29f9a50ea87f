"""What follows from the validation perplexities after the epochs: stalls, the best epoch, the end.

Merity et al. (2018): https://arxiv.org/abs/1708.02182
"""

from collections.abc import Sequence

import numpy as np

from zaremba_jax.config import TrainConfig


def count_stalls(estimates: Sequence[float], patience: int, first_epoch: int) -> int:
    """How many times `patience` epochs in a row brought no new best, counted anew after each.

    Those that end before `first_epoch` do not count.
    """
    stalls, best, since = 0, float("inf"), 0
    for epoch, estimate in enumerate(estimates, start=1):
        since = 0 if estimate < best else since + 1
        best = min(best, estimate)
        if epoch >= first_epoch and since >= patience:
            stalls, since = stalls + 1, 0
    return stalls


def is_out_of_patience(config: TrainConfig, estimates: Sequence[float]) -> bool:
    """Whether training ends after these validation perplexities, one an epoch, by `patience`.

    >>> from zaremba_jax.config import override
    >>> from zaremba_jax.presets import QUICK
    >>> train = override(QUICK, patience=2).train
    >>> is_out_of_patience(train, [90.0, 80.0, 85.0]), is_out_of_patience(train, [80.0, 85.0, 80.0])
    (False, True)
    """
    patience, epochs = config.patience, len(estimates)
    return 0 < patience < epochs and patience <= epochs - best_epoch(estimates)


def best_epoch(estimates: Sequence[float]) -> int:
    """The epoch, counted from 1, with the first of the lowest estimates."""
    return 1 + int(np.argmin(estimates))


def averaged_from(config: TrainConfig, estimates: Sequence[float]) -> int:
    """The epoch, counted from 1, from whose first step on a model is averaged; 0: not yet known.

    It is `average_from` or the epoch after the first stall, whichever comes first. An epoch
    stalls if its validation perplexity is worse than the best of those more than
    `average_after_stall` epochs before it (Merity et al. 2018, section 3, and their code).

    Args:
      config: when to average.
      estimates: the validation perplexity after each epoch so far.

    >>> from zaremba_jax.presets import AWD
    >>> better, worse = [90.0, 80.0] + 6 * [70.0], [90.0, 80.0] + 6 * [85.0]
    >>> averaged_from(AWD.train, better), averaged_from(AWD.train, worse)
    (0, 9)
    """
    n = config.average_after_stall
    after_stalls = (
        epoch + 1
        for epoch in range(n + 2, len(estimates) + 1)
        if n and estimates[epoch - 1] > min(estimates[: epoch - 1 - n])
    )
    return min(filter(None, (config.average_from, next(after_stalls, 0))), default=0)
