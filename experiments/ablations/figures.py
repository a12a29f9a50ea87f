"""The ablation's figures, made from its results only."""

import statistics
from typing import Any

import numpy as np

from experiments.reports.figures import (
    draw_range,
    label_epochs,
    label_logarithmic,
    legend_outside,
    line_styles,
    panels,
    title_panels,
)
from experiments.reports.statistics import deviation, format_mean

Style = dict[str, Any]
_BESIDE = {"textcoords": "offset points", "va": "center", "fontsize": "small"}


def final_perplexities_figure(results: dict[str, Any]) -> Any:
    """Final test perplexity by cell (panel) and method (bar): mean, deviation and every seed.

    Bars begin at the floor of the source, if it is known.
    """
    language, styles = results["language_modelling"], _styles(results)
    floor, count = results["floor_perplexity"] or 0.0, len(language)
    size = 3.4 * count + 1.6, 0.38 * len(styles) + 1.2
    figure, of_cells = panels(*size, columns=count, sharex=True, sharey=True)
    for panel, (cell, methods) in zip(of_cells, language.items(), strict=True):
        for row, (method, record) in enumerate(methods.items()):
            tests = record["test"]
            if record["chosen"] is None:
                panel.text(floor, row, " not finite", va="center")
                continue
            mean, color = statistics.mean(tests), styles[method]["color"]
            panel.barh(row, mean - floor, left=floor, color=color, alpha=0.6)
            panel.errorbar(mean, row, xerr=deviation(tests), color="black", capsize=3)
            panel.plot(tests, [row] * len(tests), "|", color="black", markersize=5)
            end = max(*tests, mean + deviation(tests))
            panel.annotate(format_mean(tests), (end, row), (4, 0), **_BESIDE)
        panel.set(title=cell, xlabel="test perplexity")
        panel.margins(x=0.3)
        panel.set_xlim(left=floor)
    titles = [styles[method]["label"] for method in next(iter(language.values()))]
    of_cells[0].set_yticks(range(len(titles)), titles)
    of_cells[0].invert_yaxis()
    shown = "one seed" if results["seeds"] == 1 else "mean ± standard deviation, and each seed"
    title_panels(figure, shown + ("; bars begin at the floor of the source" if floor else ""))
    return figure


def language_modelling_figure(results: dict[str, Any]) -> Any:
    """Validation perplexity over epochs at the chosen rates, by cell (panel) and method (line).

    Mean and range over seeds.
    """
    language, styles = results["language_modelling"], _styles(results)
    count = len(language)
    figure, of_cells = panels(3.6 * count + 2.4, 4.8, columns=count, sharey=True)
    for panel, (cell, methods) in zip(of_cells, language.items(), strict=True):
        for method, record in methods.items():
            if record["chosen"] is None:
                continue
            curves, width = record["curves"], 2.5 if method in ("none", "non_recurrent") else 1.2
            epochs = range(1, len(curves[0]) + 1)
            draw_range(panel, epochs, curves, linewidth=width, **styles[method])
        panel.set_title(cell)
        label_epochs(panel)
    _focus(of_cells, language)
    for panel in of_cells:
        label_logarithmic(panel)
    over_seeds = ", mean and range over seeds" if results["seeds"] > 1 else ""
    of_cells[0].set_ylabel(f"validation perplexity{over_seeds}")
    legend_outside(figure, handlelength=4)
    return figure


def _styles(results: dict[str, Any]) -> dict[str, Style]:
    """How each method is drawn and called, by name."""
    methods = next(iter(results["language_modelling"].values()))
    return {
        method: style | {"label": results["titles"][method]}
        for method, style in zip(methods, line_styles(len(methods)), strict=True)
    }


def _focus(of_cells: list[Any], language: dict[str, Any]) -> None:
    """Limits the axes to hide the first epochs, in which all curves fall alike."""
    records = [record for methods in language.values() for record in methods.values()]
    curves = [np.mean(record["curves"], axis=0) for record in records if record["curves"]]
    if not curves:
        return
    low = min(curve.min() for curve in curves)
    high = max(curve[len(curve) // 3 :].max() for curve in curves)
    for panel in of_cells:
        panel.set_ylim(0.97 * low, 1.03 * high)


def memory_figure(results: dict[str, Any]) -> Any:
    """Share of symbols named correctly over the lag, by cell: mean and range over seeds.

    Lines become thinner and their marks larger, so that each is seen where others lie on it.
    """
    memory = results["memory"]
    count = len(memory["cells"])
    figure, of_cells = panels(4.2 * count + 1, 4.2, columns=count, sharey=True)
    notes = {"tanh": "tanh cell: its only memory is h", "lstm": "LSTM: its memory is c and h"}
    for panel, (cell, cell_results) in zip(of_cells, memory["cells"].items(), strict=True):
        lags = [np.sqrt(first * last) for first, last in cell_results["bins"]]
        methods = cell_results["methods"]
        styles = enumerate(line_styles(len(methods)), 1)
        for (number, style), (name, record) in zip(styles, methods.items(), strict=True):
            style |= {
                "linewidth": 4 / number,
                "markersize": 2 + 3 * number,
                "markerfacecolor": "none",
            }
            draw_range(panel, lags, record["accuracy"], **style, label=name)
        panel.axhline(memory["chance"], color="gray", linestyle=":", label="chance")
        panel.set(xscale="log", ylim=(0, 1.04), xlabel="steps since the symbol")
        panel.set_title(notes.get(cell, cell))
        panel.xaxis.set_major_formatter("{x:g}")
    of_cells[0].set_ylabel("share of symbols named correctly")
    legend_outside(figure, "upper center", ncols=4)
    return figure
