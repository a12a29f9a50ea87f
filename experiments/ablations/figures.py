"""The figures of the ablation: learning curves of all methods, and the memory task."""

from typing import Any

import numpy as np

from experiments.reports.pictures import draw_range, label_epochs, label_perplexities, panels

_COLORS = {
    "none": "black",
    "l2": "tab:green",
    "l1": "tab:olive",
    "elastic_net": "tab:cyan",
    "dropconnect": "tab:purple",
    "ordinary": "tab:red",
    "variational": "tab:orange",
    "non_recurrent": "tab:blue",
}


def language_modelling_figure(results: dict[str, Any]) -> Any:
    """Validation perplexity over epochs at the chosen rates, by cell (panel) and method (line).

    Mean and range over seeds.
    """
    language, titles = results["language_modelling"], results["titles"]
    count = len(language)
    figure, of_cells = panels(3.6 * count + 2.4, 4.4, columns=count, sharey=True)
    for panel, (cell, methods) in zip(of_cells, language.items(), strict=True):
        for method, record in methods.items():
            if record["chosen"] is None:
                continue
            curves, width = record["curves"], 2.5 if method in ("none", "non_recurrent") else 1.2
            style = {"color": _COLORS[method], "linewidth": width, "label": titles[method]}
            draw_range(panel, range(1, len(curves[0]) + 1), curves, **style)
        panel.set_title(cell)
        label_epochs(panel)
        label_perplexities(panel)
    _focus(of_cells, language)
    of_cells[0].set_ylabel("validation perplexity, mean and range over seeds")
    handles, labels = of_cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


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
    """Share of symbols named correctly over the lag, by cell: mean and range over seeds."""
    memory = results["memory"]
    count = len(memory["cells"])
    figure, of_cells = panels(4.2 * count + 1, 4.2, columns=count, sharey=True)
    styles = (
        {"color": "black", "marker": "o"},
        {"color": "tab:red", "marker": "s"},
        {"color": "tab:blue", "marker": "^", "linestyle": "--"},
    )
    notes = {"tanh": "tanh cell: its only memory is h", "lstm": "LSTM: its memory is c and h"}
    for panel, (cell, cell_results) in zip(of_cells, memory["cells"].items(), strict=True):
        lags = [np.sqrt(first * last) for first, last in cell_results["bins"]]
        for (name, record), style in zip(cell_results["methods"].items(), styles, strict=True):
            draw_range(panel, lags, record["accuracy"], **style, label=name)
        panel.axhline(memory["chance"], color="gray", linestyle=":", label="chance")
        panel.set(xscale="log", ylim=(0, 1.04), title=notes[cell], xlabel="steps since the symbol")
        panel.xaxis.set_major_formatter("{x:g}")
    of_cells[0].set_ylabel("share of symbols named correctly")
    handles, labels = of_cells[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure
