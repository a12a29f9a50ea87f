"""What a program shows: lines of text, and pictures where matplotlib is there."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console


class Terminal(Console):
    """Prints text as it is. A program whose reader is gone goes on, and prints no more."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """What trains is still to be saved; to end here, as rich does, would lose it."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def draw(console: Console, path: Path, draw_with: Callable[[Any, Path], None]) -> None:
    """Has a picture drawn on one host of several, or says what is missing for that.

    Args:
      console: takes a line where matplotlib, an extra, is not installed.
      path: of the picture.
      draw_with: draws it, from the module `experiments.figures` and the path.
    """
    try:
        figures = importlib.import_module("experiments.figures")
    except ImportError:
        console.print(f"no {path.name} without matplotlib: pip install 'zaremba-jax[plots]'")
        return
    if jax.process_index() == 0:
        draw_with(figures, path)
