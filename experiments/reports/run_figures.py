"""Figures of a run, of an ensemble and of a sweep."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reports.figures import (
    OF_PAPER,
    are_logarithmic,
    draw_level,
    draw_range,
    label_epochs,
    label_logarithmic,
    label_values,
    legend_outside,
    line_styles,
    mark_best,
    panels,
    thin_marks,
    wrapped,
)
from experiments.reports.records import title_of
from zaremba_jax.presets import from_dict
from zaremba_jax.regularizers import active_rates


def curves_figure(history: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Perplexity and learning rate over epochs, with the best epoch and the final figures."""
    epochs = [metrics["epoch"] for metrics in history]
    figure, (upper, lower) = panels(7, 6.5, rows=2, sharex=True, height_ratios=(3, 1))
    regularized = active_rates(from_dict(summary["config"]).regularizers)
    training, validation = (
        [metrics[name] for metrics in history]
        for name in ("train_perplexity", "valid_perplexity_estimate")
    )
    in_training, in_validation = line_styles(2)
    label = "training, regularizers on" if regularized else "training"
    upper.plot(epochs, training, **in_training, label=label)
    upper.plot(epochs, validation, **in_validation, label="validation (estimate)")
    best = int(np.argmin(validation))
    label = f"best estimate: {validation[best]:.1f}, epoch {epochs[best]}"
    mark_best(upper, epochs[best], validation[best], label)
    draw_level(upper, summary["test_perplexity"], "test, final", "-")
    draw_level(upper, summary["paper_test_perplexity"], "test, paper", "--")
    draw_level(upper, summary["floor_perplexity"], "floor of the source", ":")
    final = " and ".join(
        f"{summary[f'{split}_perplexity']:.2f} on {name}"
        for split, name in (("valid", "validation"), ("test", "test"))
    )
    upper.set(ylabel="perplexity", title=f"{wrapped(title_of(summary))}\nfinal: {final}")
    label_logarithmic(upper)
    thin_marks(upper)
    lower.step(epochs, [metrics["learning_rate"] for metrics in history], where="mid")
    lower.plot(epochs, [metrics["learning_rate"] for metrics in history], "C0.")
    lower.set(ylabel="learning rate")
    label_logarithmic(lower, apart=0.2)
    label_epochs(lower)
    legend_outside(figure, "lower center", ncols=2)
    return figure


def mixtures_figure(summary: dict[str, Any]) -> Any:
    """Perplexity over the number of members averaged, with the spread over subsets."""
    figure, (axes,) = panels(7, 4.5)
    mixtures = summary["mixtures"]
    styles = zip(("valid", "test"), ("validation", "test"), line_styles(2), strict=True)
    for name, label, style in styles:
        draw_sizes(axes, mixtures, name, label, **style)
        paper = {m["members"]: m[f"paper_{name}_perplexity"] for m in mixtures}
        draw_paper(axes, paper, f"{label}, paper", style["color"])
    draw_level(axes, summary["floor_perplexity"], "floor of the source", ":")
    axes.set(xlabel="models averaged", ylabel="perplexity", title=wrapped(title_of(summary)))
    label_values(axes, [mixture["members"] for mixture in mixtures], logarithmic=True)
    legend_outside(figure)
    return figure


def draw_sizes(
    axes: Any, mixtures: list[dict[str, Any]], split: str, label: str, **style: Any
) -> None:
    """Perplexity over the number of models averaged, with its spread."""
    axes.errorbar(
        [mixture["members"] for mixture in mixtures],
        [mixture[f"{split}_perplexity"] for mixture in mixtures],
        [mixture[f"{split}_spread"] for mixture in mixtures],
        capsize=3,
        label=label,
        **style,
    )


def draw_paper(axes: Any, figures: Mapping[int, float | None], label: str, color: Any) -> None:
    """The paper's figures by number of models averaged, those that there are."""
    points = {members: figure for members, figure in figures.items() if figure is not None}
    if points:
        axes.plot(list(points), list(points.values()), color=color, label=label, **OF_PAPER)


def sweep_figure(summary: dict[str, Any]) -> Any:
    """Validation perplexity over the values of the first rate, one line per setting of the others.

    Mean and range over seeds; a setting with a diverged model is left out. The best is marked.
    Lines leave the picture above twice the best, where one bad setting would flatten all others.
    """
    name, *others = summary["settings"][0]["setting"]
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    best = math.nan
    for line in summary["settings"]:
        perplexities = [member.get("valid_perplexity", np.nan) for member in line["members"]]
        label = ", ".join(f"{other} {line['setting'][other]:g}" for other in others)
        lines.setdefault(label, []).append((line["setting"][name], perplexities))
        if line["setting"] == summary["best"]:
            best = float(np.mean(perplexities))
    figure, (axes,) = panels(8, max(4.5, 0.21 * len(lines)))
    styles = line_styles(len(lines), graded=True)
    for (label, points), style in zip(lines.items(), styles, strict=True):
        values, perplexities = zip(*sorted(points), strict=True)
        if np.min(perplexities) > 2 * best:
            label += " (above the picture)"
        draw_range(axes, values, np.transpose(perplexities), **style, label=label)
    if summary["best"] is not None:
        setting = ", ".join(f"{other} {value:g}" for other, value in summary["best"].items())
        point = summary["best"][name], best
        mark_best(axes, *point, f"best: {setting}")
        axes.annotate(f"{best:.2f}", point, (0, -16), textcoords="offset points", ha="center")
    axes.set(ylabel="validation perplexity", title=wrapped(title_of(summary)))
    axes.margins(y=0.12)
    if axes.get_ylim()[1] > 2 * best:
        axes.set_ylim(0.88 * best, 2 * best)
        axes.set_ylabel("validation perplexity, up to twice the best")
    values = sorted({line["setting"][name] for line in summary["settings"]})
    logarithmic = are_logarithmic(values)
    label_values(axes, values, logarithmic)
    axes.set_xlabel(f"{name}, logarithmic" if logarithmic else name)
    legend_outside(figure, "right center" if others else "lower center")
    return figure
