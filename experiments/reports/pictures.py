"""How pictures are made: the panels, what is drawn alike in all of them, and their files.

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

P = ParamSpec("P")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_picture(
    console: Console, path: Path, figure_of: Callable[P, Any], *content: P.args, **more: P.kwargs
) -> None:
    """Writes a picture, on the first host only, or says what is missing for it.

    Args:
      console: gets a line if matplotlib is not installed.
      path: where the picture goes.
      figure_of: returns the figure.
      content: what `figure_of` takes.
      more: the same, by name.
    """
    if not can_draw():
        console.print(f"no {path.name} without matplotlib: pip install 'zaremba-jax[plots]'")
    elif jax.process_index() == 0:
        figure_of(*content, **more).savefig(path, dpi=150)


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
