"""What a user sees of a run in training: a row per epoch and, on a terminal, a live bar."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.training.run import Run, position
from zaremba_jax.data.units import UNITS

_WIDE = 80  # columns that the bar needs to show the speed too


class Cell(NamedTuple):
    """A column's title and width, and what it has in one row."""

    title: str
    width: int
    text: str


class EpochDisplay(Progress):
    """A context manager that shows one task: all windows of all epochs.

    Off a terminal there is a row for the first windows, and one whenever `log_minutes` went by
    without any.
    """

    def __init__(self, console: Console, run: Run, log_minutes: float):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._run, self._log_seconds, self._last_row = run, 60 * log_minutes, -math.inf
        self._unit = UNITS[run.corpus.vocabulary.unit]
        self._epochs, self._titles = run.config.train.epochs, ""  # of the columns above
        self._compiled: set[int] = set()  # lengths of chunks
        total = self._epochs * len(run.windows)
        self._all = self.add_task("compiling", total=total, completed=run.step, detail="")

    def begins(self, windows: int) -> None:
        """Says so if a chunk of this many windows has to be compiled first."""
        if windows not in self._compiled:
            self.update(self._all, description="compiling")
        self._compiled.add(windows)

    def windows(self, metrics: dict[str, Any]) -> None:
        """Shows where the run stands within an epoch."""
        speed = f"  {metrics['words_per_second']:,.0f} {self._unit.noun}s/s"
        self.update(
            self._all,
            completed=self._run.step,
            description=f"epoch {metrics['epoch']}/{self._epochs}",
            detail=f"train {format_figure(self._train_perplexity(metrics))}"
            + (speed if self.console.width >= _WIDE else ""),
        )
        _, window = position(self._run)
        is_due = time.monotonic() - self._last_row >= self._log_seconds
        if window and is_due and not self.console.is_terminal:
            self._print(metrics, f" {window / len(self._run.windows):3.0%}")

    def _train_perplexity(self, metrics: dict[str, Any]) -> float:
        """That of the model, the mean of models that are alike, or the best of others."""
        if self._run.are_alike:
            return metrics["train_perplexity"]
        return min(figure for figure in metrics["train_perplexities"] if figure is not None)

    def epoch(self, metrics: dict[str, Any], texts: Sequence[str] = ()) -> None:
        """Prints a finished epoch's row, and texts that the model wrote after it."""
        self._print(metrics, "")
        for text in texts:
            self.console.print(Padding(text, (0, 0, 0, 2), expand=False))
            self._titles = ""

    def _print(self, metrics: dict[str, Any], part: str) -> None:
        cells = fitting(self._cells(metrics, part), self.console.width)
        titles = "  ".join(f"{cell.title:>{cell.width}}" for cell in cells)
        row = "  ".join(f"{cell.text:>{cell.width}}" for cell in cells)
        if titles != self._titles:  # the first row, or one of other columns
            row = f"{titles}\n{row}"
        self.console.print(row, soft_wrap=True)
        self._titles, self._last_row = titles, time.monotonic()

    def _cells(self, metrics: dict[str, Any], part: str) -> dict[str, Cell]:
        """The cells of a row in order; `part` of the epoch is trained, unless it is whole."""
        of_epoch = f"{metrics['epoch']:>{len(str(self._epochs))}}/{self._epochs}{part:4}"
        cells = {"epoch": Cell(f"{'epoch':{len(of_epoch)}}", len(of_epoch), of_epoch)}
        if "learning_rate" in metrics:
            cells["rate"] = Cell("rate", 8, f"{metrics['learning_rate']:.3g}")
        perplexities: dict[str, float | None] = {"train": self._train_perplexity(metrics)}
        if self._run.are_alike:
            perplexities["valid"] = metrics.get("valid_perplexity_estimate")
        if len(self._run.all_configs) > 1:
            for which in ("best", "worst"):
                perplexities[which] = metrics.get(f"valid_perplexity_{which}")
        for title, figure in perplexities.items():
            cells[title] = Cell(title, 8, "" if figure is None else format_figure(figure))
        if self._unit.reported_in_bits:
            valid = perplexities.get("valid", perplexities.get("best"))
            cells["bits"] = Cell("bits", 6, "" if valid is None else f"{math.log2(valid):.3f}")
        speed = f"{self._unit.noun}s/s"
        cells["speed"] = Cell(speed, max(9, len(speed)), f"{metrics['words_per_second']:,.0f}")
        history, seconds = self._run.journal.history, self._run.journal.seconds
        before = history[metrics["epoch"] - 2]["seconds"] if metrics["epoch"] > 1 else 0
        cells["time"] = Cell("time", 7, _duration(seconds - before))
        cells["total"] = Cell("total", 8, _duration(seconds))
        return cells


_LEAST_FIRST = ("speed", "worst", "rate", "best", "train")


def fitting(cells: dict[str, Cell], width: int) -> list[Cell]:
    """The cells that fit into a line, of which those that matter least are left out first."""
    kept = dict(cells)
    for name in _LEAST_FIRST:
        if sum(cell.width + 2 for cell in kept.values()) - 2 > width:
            kept.pop(name, None)
    return list(kept.values())


def format_figure(value: float, digits: int = 2) -> str:
    """A number with so many decimals, or with an exponent if it is huge."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    """Seconds below a minute, then minutes or hours before the colon."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
