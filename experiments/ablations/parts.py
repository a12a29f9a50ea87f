"""The parts of the ablation, as many at a time as there are cores."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.training.environment import cores
from zaremba_jax.array_types import CellName


class Part(NamedTuple):
    """One task on one cell, or some of its methods; it depends on no other part."""

    task: str
    cell: CellName
    steps: int  # how often it calls `on_progress`
    run: Callable[..., dict[str, Any]]  # takes `on_progress`; returns results by name


class PartsProgress(Progress):
    """Shows a bar on a terminal and a line for each finished part; Ctrl-C stops the work."""

    def __init__(self, console: Console, steps: int):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._stopped, self._began = threading.Event(), time.monotonic()
        self._all = self.add_task("compiling", total=steps)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            self._stopped.set()
        super().__exit__(kind, *rest)

    def step(self, description: str) -> None:
        """Moves the bar on by one step; raises `RuntimeError` if the work was stopped."""
        if self._stopped.is_set():
            raise RuntimeError("stopped")
        self.update(self._all, advance=1, description=description)

    def done(self, part: Part) -> None:
        """Prints that a part is finished."""
        seconds = time.monotonic() - self._began
        self.console.print(
            f"{seconds:6.1f} s  {part.task.replace('_', ' ')}, {part.cell}", soft_wrap=True
        )


def run_parts(parts: Sequence[Part], console: Console) -> dict[str, dict[CellName, Any]]:
    """Runs all parts, of which the longest should come first; returns results by task and cell."""
    steps = sum(part.steps for part in parts)
    with ThreadPoolExecutor(cores()) as pool, PartsProgress(console, steps) as progress:
        futures = {pool.submit(part.run, on_progress=progress.step): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                progress.done(futures[future])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    results: dict[str, dict[CellName, Any]] = {part.task: {} for part in parts}
    for future, part in futures.items():
        results[part.task].setdefault(part.cell, {}).update(future.result())
    return results
