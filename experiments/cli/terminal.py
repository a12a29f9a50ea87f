"""Where a program prints."""

import os
import sys
from typing import Any, TextIO

from rich.console import Console


class Terminal(Console):
    """Prints text verbatim; a program that cannot print goes on without printing."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet)

    def __exit__(self, *raised: Any) -> None:
        """Ends a line, as every method that prints does."""
        try:
            super().__exit__(*raised)
        except OSError:  # the terminal is gone, or the disk that takes the output is full
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Goes silent; exiting here, as rich does, would lose a run that is not saved yet."""
        self.quiet = True
        silence(sys.stdout)


def write_out(text: str) -> None:
    """Prints the lines that a program is run for; a reader who has left wants no more of them.

    Raises:
      OSError: they cannot be written.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None


def silence(stream: TextIO) -> None:
    """Lets whatever a stream still has to write go nowhere, so that it ends without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
