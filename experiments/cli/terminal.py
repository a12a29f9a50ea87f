"""Where a program prints."""

import os
import re
import sys
from typing import IO, Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

# All but line ends and tabs that moves the cursor, sounds, or turns the direction of reading.
_HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Terminal(Console):
    """Prints text verbatim; a program that cannot print goes on without printing."""

    def __init__(self, *, quiet: bool = False, stderr: bool = False):
        if os.environ.get("COLUMNS", "").strip("0") == "":  # 0 means unknown, but not to rich
            os.environ.pop("COLUMNS", None)
        super().__init__(highlight=False, markup=False, emoji=False, quiet=quiet, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """A line or a table's cell as it is shown."""
        return super().render_str(harmless(text) if self.is_terminal else text, **options)

    def status(self, status: Any, **options: Any) -> Status:
        """Shows a line while a block runs; rich would take its brackets for markup."""
        return super().status(self.render_str(status), **options)

    def __exit__(self, *raised: Any) -> None:
        """Ends a line, as every method that prints does."""
        try:
            super().__exit__(*raised)
        except OSError:  # the terminal is gone, or the disk that takes the output is full
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Goes silent; exiting here, as rich does, would lose a run that is not saved yet."""
        self.quiet = True
        silence(self.file)


def write_out(text: str) -> None:
    """Prints the lines that a program is run for; a reader who has left wants no more of them.

    Raises:
      OSError: they cannot be written.
    """
    try:
        print(as_shown(text, sys.stdout), flush=True)
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None


def write_aside(text: str) -> None:
    """Prints a line beside what a program is run for, on standard error if that is open."""
    if sys.stderr is not None:  # `print` would take standard output in its place
        print(as_shown(text, sys.stderr), file=sys.stderr)


def harmless(text: str) -> str:
    """The text with its control characters escaped: they can come from anybody's words."""
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def as_shown(text: str, stream: IO[str] | None) -> str:
    """The text as it goes to a stream: harmless on a terminal, exact in a file or a pipe."""
    return harmless(text) if stream is not None and stream.isatty() else text


def silence(stream: IO[str]) -> None:
    """Lets whatever a stream still has to write go nowhere, so that it ends without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
