"""The ablation's report as Markdown, and its figures, made from its results only."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.reports.figures import draw_range, label_epochs, label_perplexities, panels
from experiments.reports.markdown import table
from experiments.reports.statistics import format_mean

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


def report_page(results: dict[str, Any]) -> str:
    """The whole text: language modelling, memory, corruption, and how it was measured."""
    parts = ["# What each regularizer does", *_language(results)]
    if results["memory"]["cells"]:
        parts += _memory(results["memory"])
    parts += [*_corruption(results), *_setting(results)]
    return "\n\n".join(parts) + "\n"


def language_table(results: dict[str, Any]) -> str:
    """Test perplexity of each method on each cell, at the chosen rate."""
    language, titles = results["language_modelling"], results["titles"]
    rows = []
    for method in next(iter(language.values())):
        records = [methods[method] for methods in language.values()]
        rows.append([titles[method], *map(_test_cell, records)])
    floor = results["floor_perplexity"]
    if floor is not None:
        rows.append(["floor of the source", *[f"{floor:.1f}"] * len(language)])
    return table(["test perplexity (rate)", *language], rows)


def memory_table(cells: dict[str, Any]) -> str:
    """Share of symbols named correctly in each bin of lags, the mean over seeds."""
    first = next(iter(cells.values()))
    names = [str(a) if a == b else f"{a}-{b}" for a, b in first["bins"]]
    rows = [
        [
            cell,
            method,
            *map(_format_mean, zip(*record["accuracy"], strict=True)),
            _format_mean(record["nats"]),
        ]
        for cell, results in cells.items()
        for method, record in results["methods"].items()
    ]
    return table(["cell", "method; steps ago:", *names, "nats in training"], rows)


def _language(results: dict[str, Any]) -> list[str]:
    records = [
        (cell, results["titles"][method], record)
        for cell, methods in results["language_modelling"].items()
        for method, record in methods.items()
    ]
    lost = [
        f"{cell}, {title}, {_rates(candidate['rates'])}: {candidate['diverged']}"
        for cell, title, record in records
        for candidate in record["candidates"]
        if candidate["diverged"]
    ]
    tried = [[cell, title, _tried(record)] for cell, title, record in records]
    parts = [
        "## Language modelling",
        "Mean ± standard deviation over seeds; in brackets, the rate that validation chose, for the"
        " elastic net that of both penalties.",
        language_table(results),
        "![validation perplexity over epochs](language_modelling.png)",
        "All candidates. Only the chosen ones were tested.",
        table(["cell", "method", "rate: validation perplexity"], tried, left=range(3)),
    ]
    if lost:
        parts.append(
            "Number of seeds that diverged, whose candidates are not chosen: " + "; ".join(lost)
        )
    return parts


def _memory(memory: dict[str, Any]) -> list[str]:
    return [
        "## Memory",
        f"The task: one of {memory['symbols']} symbols, then random ones of the same kind; k steps"
        " later, the first has to be named. The question comes with chance 1 / (k + 1), so that"
        " every order of magnitude of k is asked for about equally often."
        f" Dropout rate {memory['rate']:g}, {memory['steps']} batches with Adam; accuracy on fresh"
        f" sequences with dropout off; chance is {memory['chance']:.3f}.",
        memory_table(memory["cells"]),
        "![accuracy over lag](memory.png)",
        "Mean and range over seeds. The tanh cell keeps everything in h, all of which ordinary"
        " dropout disturbs. The LSTM also has c, which dropout of h[t-1] does not touch. Nats in"
        " training: the mean nats of an answer at the end of training, dropout on.",
    ]


def _corruption(results: dict[str, Any]) -> list[str]:
    record = results["corruption"]
    rows = [[name, *map(str, counts.values())] for name, counts in record["masks"].items()]
    header = ["masks on the way", *(f"k = {lag}" for lag in next(iter(record["masks"].values())))]
    return [
        "## How often information is corrupted",
        f"Counted from the masks of a network of L = {record['layers']} layers, between an input"
        " and the output that many steps later. With the paper's dropout it is L + 1 times,"
        " however many steps there are.",
        table(header, rows),
    ]


def _setting(results: dict[str, Any]) -> list[str]:
    config, versions = results["config"], results["versions"]
    rates = ", ".join(f"{cell} {rate:g}" for cell, rate in results["learning_rates"].items())
    return [
        "## Setting",
        f"{results['corpus']} corpus, its first {results['train_tokens']:,} training tokens;"
        f" {config['layers']} × {config['hidden_size']} units, {config['epochs']} epochs,"
        f" {results['seeds']} seeds. Initial learning rate, the same for all methods: {rates}. Each"
        " model is taken after the epoch with the best validation perplexity. Everything else is in"
        " results.json.",
        f"{results['seconds']:.0f} s on {results['device']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def _test_cell(record: dict[str, Any]) -> str:
    if record["chosen"] is None:
        return "not finite"
    rates = _rates(record["candidates"][record["chosen"]]["rates"])
    return format_mean(record["test"]) + (f" ({rates})" if rates else "")


def _tried(record: dict[str, Any]) -> str:
    def tried(candidate: dict[str, Any]) -> str:
        rates, perplexity = _rates(candidate["rates"]), candidate["validation"]
        figure = "not finite" if perplexity is None else f"{perplexity:.1f}"
        return f"{rates}: {figure}" if rates else figure

    return ", ".join(map(tried, record["candidates"]))


def _format_mean(values: Iterable[float]) -> str:
    return f"{statistics.mean(values):.2f}"


def _rates(rates: dict[str, float]) -> str:
    """The distinct rates of a candidate's settings."""
    return " and ".join(f"{rate:g}" for rate in dict.fromkeys(rates.values()))


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
