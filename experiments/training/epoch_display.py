"""What a user sees of a run in training: a line per epoch and, on a terminal, a live bar."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class EpochDisplay(Progress):
    """A context manager that shows one task: all windows of all epochs."""

    def __init__(self, console: Console, epochs: int, windows_per_epoch: int, step: int):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._epochs = epochs
        self._all = self.add_task("", total=epochs * windows_per_epoch, completed=step, detail="")

    def windows(self, step: int, metrics: dict[str, Any]) -> None:
        """Shows where the run stands within an epoch."""
        self.update(
            self._all,
            completed=step,
            description=f"epoch {metrics['epoch']}/{self._epochs}",
            detail=f"perplexity {metrics['train_perplexity']:.2f}"
            f"  rate {metrics['learning_rate']:.4g}"
            f"  {metrics['words_per_second']:,.0f} words/s",
        )

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Prints a finished epoch's line; for an ensemble, with its best and worst member."""
        spread = ""
        if "valid_perplexity_best" in metrics:
            best, worst = (metrics[f"valid_perplexity_{which}"] for which in ("best", "worst"))
            spread = f"  best {best:8.2f}  worst {worst:8.2f}"
        self.console.print(
            f"epoch {metrics['epoch']:>2}/{self._epochs}"
            f"  rate {metrics['learning_rate']:<7.4g}"
            f"  train {metrics['train_perplexity']:8.2f}"
            f"  valid {metrics['valid_perplexity_estimate']:8.2f}{spread}"
            f"  {metrics['words_per_second']:>9,.0f} words/s"
            f"  {metrics['seconds']:6.1f} s",
            soft_wrap=True,
        )
