"""What a program shows: lines of text, and figures if matplotlib is installed."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console


class Terminal(Console):
    """Prints text verbatim; a program whose reader is gone goes on without printing."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Goes silent; exiting here, as rich does, would lose a run that is not saved yet."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def draw(console: Console, path: Path, name: str, *content: Any) -> None:
    """Draws a figure, on the first host only, or says what is missing for it.

    Args:
      console: gets a line if matplotlib, an extra, is not installed.
      path: where the figure goes.
      name: the function of `experiments.reports.figures` that draws it.
      content: what that function takes after the path.
    """
    try:
        figures = importlib.import_module("experiments.reports.figures")
    except ImportError:
        console.print(f"no {path.name} without matplotlib: pip install 'zaremba-jax[plots]'")
        return
    if jax.process_index() == 0:
        getattr(figures, name)(path, *content)
