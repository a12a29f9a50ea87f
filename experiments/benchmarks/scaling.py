"""Tokens per second of every contender over sizes of model and windows, and their figure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.contenders import OURS, Contender, choose_contenders
from experiments.benchmarks.step_times import Quartiles, compare_step_times
from experiments.reports.figures import (
    label_values,
    legend_outside,
    line_styles,
    panels,
    title_panels,
)
from zaremba_jax.config import Config, override

# The values of each setting in the scaling curves; all others stay as configured.
SCALES = {
    "hidden_size": (128, 256, 512, 1024),
    "batch_size": (5, 10, 20, 40, 80),
    "unroll": (5, 10, 20, 35, 70),
    "members": (1, 2, 4, 8),
}


# Tokens per second by setting, its value and contender.
ScalingCurves = dict[str, dict[str, dict[str, Quartiles]]]


def refuse_scales(config: Config) -> None:
    """Refuses a configuration in which a size cannot take one of its values alone.

    Raises:
      InputError: a value of `SCALES` does not go with the other settings.
    """
    for setting in SCALES.keys() - {"members"}:
        for value in SCALES[setting]:
            override(config, **{setting: value})


def scaling_curves(
    config: Config,
    peers: Sequence[str],
    windows: int,
    rounds: int,
    keep: Callable[[ScalingCurves], None],
) -> ScalingCurves:
    """Measures with one setting varied at a time; `keep` takes what there is after each point."""

    def at(setting: str, value: int) -> dict[str, Quartiles]:
        if setting == "members":  # only ours trains several
            contenders = [Contender(OURS, config, members=value, at_once=value)]
        else:
            contenders = choose_contenders(override(config, **{setting: value}), peers)
        records = compare_step_times(contenders, windows, rounds)["contenders"]
        return {
            contender._replace(members=1).name: record["tokens_per_second"]
            for contender, record in zip(contenders, records, strict=True)
        }

    curves: ScalingCurves = {}
    for setting, values in SCALES.items():
        for value in values:
            curves.setdefault(setting, {})[str(value)] = at(setting, value)
            keep(curves)
    return curves


def scaling_figure(results: dict[str, Any]) -> Any:
    """Speed over each setting that a benchmark varied (panel), by contender (line).

    Speed is relative to ours at the same setting, that of several members to one; medians and
    quartiles. Below each value are our thousand tokens a second.
    """
    scaling = results["scaling"]
    figure, of_settings = panels(3.4 * len(scaling), 4.2, columns=len(scaling), sharey=True)
    names = dict.fromkeys(
        name for points in scaling.values() for at in points.values() for name in at
    )
    styles = dict(zip(names, line_styles(len(names)), strict=True))
    for panel, (setting, points) in zip(of_settings, scaling.items(), strict=True):
        sizes, first = [int(size) for size in points], next(iter(points.values()))
        ours = np.array([point[next(iter(first))][1] for point in points.values()])
        base = ours[:1] if setting == "members" else ours
        for name in first:
            quartiles = np.array([point[name] for point in points.values()]).T / base
            panel.plot(sizes, quartiles[1], **styles[name], label=name)
            panel.fill_between(sizes, *quartiles[::2], color=styles[name]["color"], alpha=0.2)
        panel.set_xlabel(setting.replace("_", " "))
        label_values(panel, sizes, logarithmic=True)
        panel.set_xticks(sizes, [f"{x}\n{y / 1000:,.1f}" for x, y in zip(sizes, ours, strict=True)])
        panel.grid(axis="y", color="0.9")
        if setting == "members":
            panel.set_title("relative to one model", fontsize="medium")
    of_settings[0].set(ylabel="speed relative to ours", ylim=(0, None))
    title_panels(
        figure,
        f"training {results['config']['name']} with one setting varied, {results['device']};"
        " below each value, our thousand tokens a second",
    )
    legend_outside(figure, "lower center", ncols=len(scaling))
    return figure
