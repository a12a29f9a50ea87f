"""Figures of runs, and how figures are made: panels, what all draw alike, and their files.

matplotlib, an extra, is imported only where something is drawn.
"""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

import jax
import numpy as np
from rich.console import Console

from zaremba_jax.presets import from_dict
from zaremba_jax.regularizers import active_rates
from zaremba_jax.whole_files import write_whole

P = ParamSpec("P")
_TITLE = "Figure of zaremba_jax"  # by which a picture is known again


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_picture(
    console: Console, path: Path, figure_of: Callable[P, Any], *content: P.args, **more: P.kwargs
) -> None:
    """Writes the picture that `figure_of` makes of its content, on the first host only.

    The path's suffix says in which format. Without matplotlib, it says what is missing.
    """
    if not can_draw():
        console.print(f"no {path.name} without matplotlib: pip install 'zaremba-jax[plots]'")
    elif jax.process_index() == 0:
        picture = io.BytesIO()
        figure_of(*content, **more).savefig(
            picture, format=path.suffix[1:], dpi=150, metadata={"Title": _TITLE}
        )
        write_whole(path, picture.getvalue())


def is_picture(path: Path) -> bool:
    """Whether `write_picture` wrote a file."""
    return _TITLE.encode() in path.read_bytes()


def as_svg(figure: Any) -> str:
    """The figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, **layout: Any
) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and its panels row by row; `layout` as for `subplots`."""
    from matplotlib.figure import Figure  # pyplot would keep every figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **layout).flat)


def draw_range(axes: Any, positions: Any, runs: Any, **style: Any) -> None:
    """The mean over runs [runs, positions] as a line, and their range as a band around it."""
    runs = np.asarray(runs)
    (line,) = axes.plot(positions, runs.mean(axis=0), **style)
    lowest, highest = runs.min(axis=0), runs.max(axis=0)
    axes.fill_between(positions, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)


def label_epochs(axes: Any) -> None:
    """Whole numbers along the axis of epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def label_perplexities(axes: Any) -> None:
    """A logarithmic axis with plain numbers instead of powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def label_sizes(axes: Any, sizes: list[int]) -> None:
    """A logarithmic axis that labels the sizes that were measured, and nothing else."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.set_xticks([], minor=True)


def plain_text(text: str) -> str:
    """The text as written: no math, and a question mark for what cannot be encoded."""
    return text.replace("$", r"\$").encode(errors="replace").decode()


def curves_figure(history: list[dict[str, Any]], summary: dict[str, Any]) -> Any:
    """Perplexity and learning rate over epochs, with the levels to compare them with."""
    epochs = [metrics["epoch"] for metrics in history]
    figure, (upper, lower) = panels(7, 6, rows=2, sharex=True, height_ratios=(4, 1))
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
    upper.set(ylabel="perplexity", title=_title_of(summary))
    label_perplexities(upper)
    upper.legend()
    lower.step(epochs, [metrics["learning_rate"] for metrics in history], where="mid")
    lower.set(ylabel="learning rate", ylim=(0, None))
    label_epochs(lower)
    return figure


def mixtures_figure(summary: dict[str, Any]) -> Any:
    """Perplexity over the number of members averaged, with the spread over subsets."""
    figure, (axes,) = panels(7, 4.5)
    mixtures = summary["mixtures"]
    for name, label in (("valid", "validation"), ("test", "test")):
        color = draw_sizes(axes, mixtures, name, label)
        paper = {m["members"]: m[f"paper_{name}_perplexity"] for m in mixtures}
        points = {members: figure for members, figure in paper.items() if figure is not None}
        if points:
            axes.plot(*zip(*points.items(), strict=True), "x", color=color, label=f"{label}, paper")
    if summary["floor_perplexity"] is not None:
        axes.axhline(
            summary["floor_perplexity"], color="black", linestyle=":", label="floor of the source"
        )
    axes.set(xlabel="models averaged", ylabel="perplexity", title=_title_of(summary))
    label_sizes(axes, [mixture["members"] for mixture in mixtures])
    axes.legend()
    return figure


def draw_sizes(
    axes: Any,
    mixtures: list[dict[str, Any]],
    split: str,
    label: str,
    color: str | None = None,
    linestyle: str = "-",
) -> str:
    """Perplexity over the number of models averaged, with its spread; returns the colour."""
    points = axes.errorbar(
        [mixture["members"] for mixture in mixtures],
        [mixture[f"{split}_perplexity"] for mixture in mixtures],
        [mixture[f"{split}_spread"] for mixture in mixtures],
        marker="." if linestyle == "-" else "o",
        markerfacecolor=color if linestyle == "-" else "none",
        linestyle=linestyle,
        capsize=3,
        label=label,
        color=color,
    )
    return points.lines[0].get_color()


def sweep_figure(summary: dict[str, Any]) -> Any:
    """Validation perplexity over the values of the first rate, one line per setting of the others.

    Mean and range over seeds; a setting with a diverged model is left out.
    """
    figure, (axes,) = panels(7, 4.5)
    name, *others = summary["settings"][0]["setting"]
    values = list(dict.fromkeys(line["setting"][name] for line in summary["settings"]))
    lines: dict[str, list[tuple[int, list[float]]]] = {}
    for line in summary["settings"]:
        perplexities = [member.get("valid_perplexity", np.nan) for member in line["members"]]
        label = ", ".join(f"{other} {line['setting'][other]:g}" for other in others)
        lines.setdefault(label, []).append((values.index(line["setting"][name]), perplexities))
    for label, points in lines.items():
        positions, perplexities = zip(*points, strict=True)
        draw_range(axes, positions, np.transpose(perplexities), marker="o", label=label)
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set(xlabel=name, ylabel="validation perplexity", title=_title_of(summary))
    if others:
        axes.legend()
    return figure


def comparison_figure(histories: dict[str, list[dict[str, Any]]]) -> Any:
    """Validation and training perplexity of runs over their epochs."""
    figure, sides = panels(11, 4.6, columns=2, sharey=True)
    for axes, name, title in zip(
        sides,
        ("valid_perplexity_estimate", "train_perplexity"),
        ("validation (estimate)", "training, any regularizers on"),
        strict=True,
    ):
        for run, history in histories.items():
            epochs = [line["epoch"] for line in history]
            label = f" {plain_text(run)}"  # matplotlib leaves out a label that starts with _
            axes.plot(epochs, [line[name] for line in history], marker=".", label=label)
        axes.set_title(title)
        label_perplexities(axes)
        label_epochs(axes)
    sides[0].set_ylabel("perplexity")
    sides[0].legend(fontsize="small")
    return figure


def _title_of(summary: dict[str, Any]) -> str:
    return plain_text(f"{summary['corpus']}, {summary['name']}")
