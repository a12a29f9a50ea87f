"""How all figures are made: their files, panels, styles, axes and legends.

matplotlib, an extra, is imported only where something is drawn.
"""

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import jax
import numpy as np
from rich.console import Console

from experiments.training.environment import is_installed
from zaremba_jax.whole_files import write_whole

P = ParamSpec("P")

# Of Okabe and Ito (2008), told apart by the colour-blind too, with grey and brown.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", "#7B3F00")
_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
_DIGITS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3))
_LINE_WIDTH = 48  # letters
_LETTERS_PER_INCH = 11  # of a title over panels
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
OF_PAPER = {
    "marker": "D",
    "markerfacecolor": "white",
    "markersize": 9,
    "linestyle": ":",
    "zorder": 1,
}
_TITLE = "Figure of zaremba_jax"  # by which a picture is known again


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return is_installed("matplotlib")


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
        with _own_style():
            figure = figure_of(*content, **more)
            figure.savefig(picture, format=path.suffix[1:], dpi=120, metadata={"Title": _TITLE})
        write_whole(path, picture.getvalue())


def is_picture(path: Path) -> bool:
    """Whether `write_picture` wrote a file."""
    return _TITLE.encode() in path.read_bytes()


def as_svg(figure_of: Callable[P, Any], *content: P.args, **more: P.kwargs) -> str:
    """The figure that `figure_of` makes of its content, as an SVG element."""
    text = io.StringIO()
    with _own_style():
        figure_of(*content, **more).savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """matplotlib's defaults, whatever the user's settings of it are.

    A letter of a name that no font here has becomes a box, without a word.
    """
    from matplotlib import style

    with style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ")
        yield


def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, **layout: Any
) -> tuple[Any, list[Any]]:
    """A figure of so many inches, and its panels row by row; `layout` as for `subplots`."""
    from matplotlib.figure import Figure  # pyplot would keep every figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **layout).flat)


def line_styles(count: int, graded: bool = False) -> list[dict[str, Any]]:
    """So many styles of lines, no two of one colour, that differ without colour as well.

    Of many `graded` lines, the colour tells the place among them; of others, neighbours differ.
    """
    from matplotlib import colormaps

    places, stride = np.arange(count), 1 if graded else _stride(count)
    spread = colormaps["turbo"](np.linspace(0.05, 0.95, count)[places * stride % count])
    colors = _COLORS if count <= len(_COLORS) else [tuple(map(float, color)) for color in spread]
    return [
        {
            "color": colors[number],
            "linestyle": _DASHES[number % len(_DASHES)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 4,
        }
        for number in range(count)
    ]


def _stride(count: int) -> int:
    """A step that goes through so many places, around and around, far from those just passed."""
    steps = [step for step in range(1, count + 1) if math.gcd(step, count) == 1]
    return min(steps, key=lambda step: abs(step - 0.38 * count), default=1)


def draw_range(axes: Any, positions: Any, runs: Any, **style: Any) -> None:
    """The mean over runs [runs, positions] as a line, and their range as a band around it."""
    runs = np.asarray(runs)
    (line,) = axes.plot(positions, runs.mean(axis=0), **style)
    lowest, highest = runs.min(axis=0), runs.max(axis=0)
    axes.fill_between(positions, lowest, highest, color=line.get_color(), alpha=0.2, linewidth=0)


def mark_best(axes: Any, position: float, value: float, label: str) -> None:
    """A star on the best point."""
    style = {"marker": "*", "markersize": 14, "linestyle": "none", "zorder": 5}
    axes.plot([position], [value], color="gold", markeredgecolor="black", label=label, **style)


def draw_level(axes: Any, value: float | None, label: str, linestyle: str) -> None:
    """A figure to compare with, as a line across, if there is one."""
    if value is not None:
        axes.axhline(value, color="black", linestyle=linestyle, label=f"{label}: {value:.1f}")


def legend_outside(figure: Any, where: str = "right center", **style: Any) -> None:
    """One legend for all panels, beside them or below, where it covers nothing."""
    labelled = [axes.get_legend_handles_labels() for axes in figure.axes]
    entries = {
        label: handle
        for handles, labels in labelled
        for handle, label in zip(handles, labels, strict=True)
    }
    if entries:
        placed = {"loc": f"outside {where}", "frameon": False, "fontsize": "small", **style}
        figure.legend(list(entries.values()), list(entries), **placed)


def label_epochs(axes: Any) -> None:
    """Whole numbers along the axis of epochs, and marks thinned; call it when all is drawn."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axes.set_xlim(0.5, max(1.0, axes.dataLim.x1) + 0.5)
    thin_marks(axes)


def thin_marks(axes: Any) -> None:
    """Marks about ten points of each line, so that its dashes are seen."""
    for line in axes.lines:
        line.set_markevery(max(1, len(line.get_xdata()) // 10))


def label_logarithmic(axes: Any, apart: float = 0.07) -> None:
    """A logarithmic axis upwards with round numbers; call it when all is drawn.

    Labels are at least `apart` of the axis from each other.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks(round_numbers(low, high, apart))
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def round_numbers(low: float, high: float, apart: float) -> list[float]:
    """The most round numbers in a range that are `apart` of its logarithm from each other."""
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.log10(high) + 1)
    finest = math.floor(math.log10(high - low)) - 1
    steps = [
        float(f"{digit}e{power}") for power in range(finest, finest + 3) for digit in (1, 2, 5)
    ]
    choices = [step * np.arange(math.ceil(low / step), high / step + 1) for step in steps]
    choices += [np.outer(decades, digits).ravel() for digits in _DIGITS]
    choices += [decades[::each] for each in (1, 2, 5, 10, 50)]
    inside = [ticks[(low <= ticks) & (ticks <= high) & (ticks > 0)] for ticks in choices]
    least = apart * math.log(high / low)
    fitting = [t for t in inside if len(t) and np.all(np.diff(np.log(t)) >= least)]
    return [float(f"{tick:.10g}") for tick in max(fitting, key=len, default=[])]


def are_logarithmic(values: Sequence[float]) -> bool:
    """Whether the logarithms of the values above zero are spaced more evenly than those.

    With zero among them, which has no place on such an axis, only over two powers of ten or more.
    """
    above = np.array(sorted(value for value in values if value > 0))
    if len(above) < 3 or (len(above) < len(values) and above[-1] < 100 * above[0]):
        return False
    by_ratio, by_distance = (
        float(np.std(x) / np.mean(x)) for x in map(np.diff, (np.log(above), above))
    )
    return by_ratio < by_distance


def label_values(axes: Any, values: Sequence[float], logarithmic: bool) -> None:
    """An axis along which values are as far apart as they are; labels only those with room.

    On a logarithmic axis, zero stands where it would be if the axis became linear below the
    lowest value.
    """
    if logarithmic:
        above = [value for value in values if value > 0]
        zero = {} if len(above) == len(values) else {"linthresh": min(above)}
        axes.set_xscale("symlog" if zero else "log", **zero)
    scale = axes.xaxis.get_transform()
    ordered = np.array(sorted(values), float)
    places = dict(zip(sorted(values), scale.transform(ordered), strict=True))
    low, high = min(places.values()), max(places.values())
    room = 0.06 * (high - low)
    if room:  # the margins of a scale with zero in it would be far wider
        axes.set_xlim(scale.inverted().transform(np.array([low - room, high + room])))
    labelled: list[float] = []
    for value, place in places.items():
        if not labelled or place - places[labelled[-1]] >= room:
            labelled.append(value)
    axes.set_xticks(labelled, [f"{value:g}" for value in labelled])
    axes.set_xticks([value for value in places if value not in labelled], minor=True)
    axes.xaxis.set_minor_formatter("")


def plain_text(text: str) -> str:
    """For a label: the text as written, no math in it, and `encodable`."""
    return encodable(text.replace("$", r"\$"))


def title_panels(figure: Any, text: str) -> None:
    """A title over all panels, in lines that the figure has room for."""
    letters = int(_LETTERS_PER_INCH * figure.get_figwidth())
    figure.suptitle(wrapped(text, letters), fontsize="medium")


def wrapped(text: str, letters: int = _LINE_WIDTH) -> str:
    """For a title or a legend: `plain_text`, in lines that leave the curves their room."""
    return plain_text(textwrap.fill(text, letters))


def encodable(text: str) -> str:
    """The text, with a question mark for what is no text in the name of a file."""
    return text.encode(errors="replace").decode()
