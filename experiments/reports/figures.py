"""Figures of runs, benchmarks and the ablation, drawn by matplotlib (extra `plots`)."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, NullLocator

from experiments.reports.mixtures import deviation
from experiments.reports.records import Record, by_seed, model_name
from zaremba_jax.config import PAPER_PERPLEXITIES, PRESETS, from_dict, override
from zaremba_jax.regularizers import active_rates


def draw_curves(path: Path, history: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Perplexity and learning rate over epochs, with the levels to compare them with."""
    epochs = [metrics["epoch"] for metrics in history]
    figure, (upper, lower) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 6), height_ratios=(4, 1), layout="constrained"
    )
    regularized = active_rates(from_dict(summary["config"]).regularizers)
    for name, label in (
        ("train_perplexity", "training, regularizers on" if regularized else "training"),
        ("valid_perplexity_estimate", "validation (estimate)"),
    ):
        upper.plot(epochs, [metrics[name] for metrics in history], marker=".", label=label)
    for name, label, style in (
        ("test_perplexity", "test, final", "-"),
        ("paper_test_perplexity", "test, paper", "--"),
        ("floor_perplexity", "floor of the source", ":"),
    ):
        if summary[name] is not None:
            upper.axhline(
                summary[name], color="black", linestyle=style, label=f"{label}: {summary[name]:.1f}"
            )
    upper.set(yscale="log", ylabel="perplexity", title=_title(summary))
    _label_plainly(upper)
    upper.legend()
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.step(epochs, [metrics["learning_rate"] for metrics in history], where="mid")
    lower.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    _save(figure, path)


def draw_mixtures(path: Path, summary: dict[str, Any]) -> None:
    """Perplexity over the number of members averaged, with the spread over subsets."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    mixtures = summary["mixtures"]
    for name, label in (("valid", "validation"), ("test", "test")):
        color = _draw_mixtures(axes, mixtures, name, label)
        paper = {m["members"]: m[f"paper_{name}_perplexity"] for m in mixtures}
        points = {members: figure for members, figure in paper.items() if figure is not None}
        if points:
            axes.plot(*zip(*points.items(), strict=True), "x", color=color, label=f"{label}, paper")
    if summary["floor_perplexity"] is not None:
        axes.axhline(
            summary["floor_perplexity"], color="black", linestyle=":", label="floor of the source"
        )
    axes.set(
        xscale="log",
        xlabel="models averaged",
        ylabel="perplexity",
        title=_title(summary),
    )
    sizes = [mixture["members"] for mixture in mixtures]
    _label_sizes(axes, sizes)
    axes.legend()
    _save(figure, path)


def draw_sweep(path: Path, summary: dict[str, Any]) -> None:
    """Validation perplexity over the values of the first rate, one line per setting of the others.

    Mean and range over seeds; a setting with a diverged model is left out.
    """
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    name, *others = summary["settings"][0]["setting"]
    values = list(dict.fromkeys(line["setting"][name] for line in summary["settings"]))
    lines: dict[str, list[tuple[int, list[float]]]] = {}
    for line in summary["settings"]:
        perplexities = [member.get("valid_perplexity", np.nan) for member in line["members"]]
        label = ", ".join(f"{other} {line['setting'][other]:g}" for other in others)
        lines.setdefault(label, []).append((values.index(line["setting"][name]), perplexities))
    for label, points in lines.items():
        positions, perplexities = zip(*points, strict=True)
        _draw_range(axes, positions, np.transpose(perplexities), marker="o", label=label)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(
        xlabel=name,
        ylabel="validation perplexity",
        title=_title(summary),
    )
    if others:
        axes.legend()
    _save(figure, path)


def draw_table1(path: Path, records: list[Record], mixtures: dict[str, dict[str, Any]]) -> None:
    """Validation perplexity over epochs, and test perplexity over the models averaged."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    models = [
        (override(PRESETS[name], precision=precision), f"C{number}", line)
        for precision, line in (("bfloat16", "--"), ("float32", "-"))
        for number, name in enumerate(PAPER_PERPLEXITIES)
    ]
    for model, color, line in models:
        name = model_name(model)
        model_records = [record for record in records if record.model == model]
        curves = np.array([curve for record in model_records for curve in record.curves])
        if curves.size:
            epochs = range(1, curves.shape[1] + 1)
            label = f"{name}, {len(curves)} seed{'s' * (len(curves) > 1)}"
            _draw_range(left, epochs, curves, linestyle=line, color=color, label=label)
        tests = [test for _, test in by_seed(model_records).values()]
        if name in mixtures:
            _draw_mixtures(right, mixtures[name]["mixtures"], "test", name, color, line)
        elif tests:
            mean, spread = np.mean(tests), deviation(tests)
            single = {"members": 1, "test_perplexity": mean, "test_spread": spread}
            _draw_mixtures(right, [single], "test", name, color, line)
    for number, (name, paper) in enumerate(PAPER_PERPLEXITIES.items()):
        figures = [test for _, test in paper.values()]
        right.plot(list(paper), figures, "x", color=f"C{number}", label=f"{name}, paper")
    left.set(xlabel="epoch", ylabel="validation perplexity (estimate)", yscale="log")
    _label_plainly(left)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    sizes = sorted({size for paper in PAPER_PERPLEXITIES.values() for size in paper})
    right.set(xscale="log", xlabel="models averaged", ylabel="test perplexity")
    _label_sizes(right, sizes)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    left.set_title("mean and range over seeds")
    right.set_title("mean ± standard deviation over seeds or sets")
    figure.suptitle("Penn Treebank")
    _save(figure, path)


def _draw_mixtures(
    axes: Any,
    mixtures: list[dict[str, Any]],
    split: str,
    label: str,
    color: str | None = None,
    line: str = "-",
) -> str:
    """Perplexity over the number of models averaged; returns the colour."""
    points = axes.errorbar(
        [mixture["members"] for mixture in mixtures],
        [mixture[f"{split}_perplexity"] for mixture in mixtures],
        [mixture[f"{split}_spread"] for mixture in mixtures],
        marker="." if line == "-" else "o",
        markerfacecolor=color if line == "-" else "none",
        linestyle=line,
        capsize=3,
        label=label,
        color=color,
    )
    return points.lines[0].get_color()


def comparison_svg(histories: dict[str, list[dict[str, Any]]]) -> str:
    """Validation and training perplexity of runs over their epochs, as an SVG element."""
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(11, 4.6), layout="constrained")
    for axes, name, title in zip(
        panels,
        ("valid_perplexity_estimate", "train_perplexity"),
        ("validation (estimate)", "training, any regularizers on"),
        strict=True,
    ):
        for run, history in histories.items():
            epochs = [line["epoch"] for line in history]
            label = f" {_plain(run)}"  # matplotlib leaves out a label that starts with _
            axes.plot(epochs, [line[name] for line in history], marker=".", label=label)
        axes.set(xlabel="epoch", yscale="log", title=title)
        _label_plainly(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("perplexity")
    panels[0].legend(fontsize="small")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def draw_scaling(path: Path, results: dict[str, Any]) -> None:
    """Tokens per second over each setting that a benchmark varied, one panel per setting."""
    scaling = results["scaling"]
    figure, panels = plt.subplots(
        1, len(scaling), sharey=True, figsize=(3.2 * len(scaling), 3.6), layout="constrained"
    )
    for panel, (setting, points) in zip(panels, scaling.items(), strict=True):
        sizes = [int(size) for size in points]
        for name in next(iter(points.values())):
            lower, median, upper = zip(*(point[name] for point in points.values()), strict=True)
            panel.plot(sizes, median, marker=".", label=name)
            panel.fill_between(sizes, lower, upper, alpha=0.2, linewidth=0)
        panel.set(xscale="log", yscale="log", xlabel=setting.replace("_", " "))
        _label_sizes(panel, sizes)
    panels[0].set_ylabel("tokens per second")
    panels[0].legend(fontsize="small")
    figure.suptitle(
        f"training {results['config']['name']} with one setting varied, {results['device']}"
    )
    _save(figure, path)


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


def draw_language_modelling(path: Path, results: dict[str, Any]) -> None:
    """Validation perplexity over epochs at the chosen rates, by cell (panel) and method (line).

    Mean and range over seeds.
    """
    language, titles = results["language_modelling"], results["titles"]
    figure, panels = plt.subplots(
        1,
        len(language),
        sharey=True,
        squeeze=False,
        figsize=(3.6 * len(language) + 2.4, 4.4),
        layout="constrained",
    )
    for panel, (cell, methods) in zip(panels[0], language.items(), strict=True):
        for method, record in methods.items():
            if record["chosen"] is None:
                continue
            curves, width = record["curves"], 2.5 if method in ("none", "non_recurrent") else 1.2
            style = {"color": _COLORS[method], "linewidth": width, "label": titles[method]}
            _draw_range(panel, range(1, len(curves[0]) + 1), curves, **style)
        panel.set(xlabel="epoch", yscale="log", title=cell)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label_plainly(panel)
    _focus(panels[0], language)
    panels[0][0].set_ylabel("validation perplexity, mean and range over seeds")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    _save(figure, path)


def _focus(panels: Iterable[Any], language: dict[str, Any]) -> None:
    """Limits the axes to hide the first epochs, in which all curves fall alike."""
    records = [record for methods in language.values() for record in methods.values()]
    curves = [np.mean(record["curves"], axis=0) for record in records if record["curves"]]
    if not curves:
        return
    low = min(curve.min() for curve in curves)
    high = max(curve[len(curve) // 3 :].max() for curve in curves)
    for panel in panels:
        panel.set_ylim(0.97 * low, 1.03 * high)


def draw_memory(path: Path, results: dict[str, Any]) -> None:
    """Share of symbols named correctly over the lag, by cell: mean and range over seeds."""
    memory = results["memory"]
    figure, panels = plt.subplots(
        1,
        len(memory["cells"]),
        sharey=True,
        squeeze=False,
        figsize=(4.2 * len(memory["cells"]) + 1, 4.2),
        layout="constrained",
    )
    styles = (
        {"color": "black", "marker": "o"},
        {"color": "tab:red", "marker": "s"},
        {"color": "tab:blue", "marker": "^", "linestyle": "--"},
    )
    notes = {"tanh": "tanh cell: its only memory is h", "lstm": "LSTM: its memory is c and h"}
    for panel, (cell, cell_results) in zip(panels[0], memory["cells"].items(), strict=True):
        lags = [np.sqrt(first * last) for first, last in cell_results["bins"]]
        for (name, record), style in zip(cell_results["methods"].items(), styles, strict=True):
            _draw_range(panel, lags, record["accuracy"], **style, label=name)
        panel.axhline(memory["chance"], color="gray", linestyle=":", label="chance")
        panel.set(xscale="log", ylim=(0, 1.04), title=notes[cell], xlabel="steps since the symbol")
        panel.xaxis.set_major_formatter("{x:g}")
    panels[0][0].set_ylabel("share of symbols named correctly")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    _save(figure, path)


def _draw_range(axes: Any, positions: Any, runs: Any, **style: Any) -> None:
    """The mean over runs [runs, positions] as a line, and their range as a band around it."""
    runs = np.asarray(runs)
    (line,) = axes.plot(positions, runs.mean(axis=0), **style)
    lowest, highest = runs.min(axis=0), runs.max(axis=0)
    axes.fill_between(positions, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)


def _label_plainly(axes: Any) -> None:
    """Plain numbers instead of powers of ten along a short logarithmic axis."""
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _label_sizes(axes: Any, sizes: list[int]) -> None:
    """Labels the sizes that were measured, and nothing else, on a logarithmic axis."""
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())


def _title(summary: dict[str, Any]) -> str:
    return _plain(f"{summary['corpus']}, {summary['name']}")


def _plain(text: str) -> str:
    """The text as written: no math, and a question mark for what cannot be encoded."""
    return text.replace("$", r"\$").encode(errors="replace").decode()


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
