"""Where a program prints."""

import os
import sys

from rich.console import Console


class Terminal(Console):
    """Prints text verbatim; a program whose reader is gone goes on without printing."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet)

    def on_broken_pipe(self) -> None:
        """Goes silent; exiting here, as rich does, would lose a run that is not saved yet."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
