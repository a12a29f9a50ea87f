"""Means over seeds or sets of models, and how far these spread."""

import statistics
from collections.abc import Sequence

import numpy as np

from experiments.training.epoch_display import format_figure


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """The standard deviation of what the values were sampled from; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def format_mean(values: Sequence[float], digits: int = 1) -> str:
    """The mean, with the standard deviation if there are several values."""
    spread = deviation(values) if len(values) > 1 else None
    return format_spread(statistics.mean(values), spread, digits)


def format_change(values: Sequence[float], base: Sequence[float]) -> str:
    """The difference of two means, with its standard error if `base` shows how values vary.

    The values are taken to vary as much as those of `base`. Empty if `base` is.
    """
    if not base:
        return ""
    error = deviation(base) * (1 / len(values) + 1 / len(base)) ** 0.5
    difference = round(statistics.mean(values) - statistics.mean(base), 1) + 0.0  # never -0.0
    sign = "" if difference < 0 else "+"
    return sign + format_spread(difference, error if len(base) > 1 else None, digits=1)


def format_spread(middle: float, spread: float | None, digits: int) -> str:
    """A number with its uncertainty, if it has one: `114.5 ± 0.3`."""
    shown = format_figure(middle, digits)
    return shown if spread is None else f"{shown} ± {format_figure(spread, digits)}"
