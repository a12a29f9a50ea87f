"""Ctrl-C ends a program in one line, wherever it hits.

`install` comes before all other imports. Python's own answer, an exception, would show a traceback
from within them, become an `ImportError`, or be swallowed by a library.
"""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

STATUS = 128 + signal.SIGINT
_UNDO_BAR = b"\x1b[?25h\r\x1b[K"  # shows the cursor, and erases the line that it is on


class _Answer:
    """What Ctrl-C does in a process that `install` prepared."""

    is_ready = False  # for an exception, which lets a program clean up
    has_come = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.has_come or not self.is_ready:
            end_at_once()
        self.has_come = True
        raise KeyboardInterrupt


_answer = _Answer()


def install() -> None:
    """Makes Ctrl-C end this process in one line, unless it ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _answer)
        show = sys.unraisablehook

        def end_or_show(unraisable: Any) -> None:
            if isinstance(unraisable.exc_value, KeyboardInterrupt):
                end_at_once()  # or the program would go on
            show(unraisable)

        sys.unraisablehook = end_or_show


def make_ready() -> None:
    """From now on the first Ctrl-C raises `KeyboardInterrupt`; the second ends at once."""
    _answer.is_ready = True


def after_one(handler: Any) -> Any:
    """What answers a second signal, by what was to answer the first: after ours, an end at once."""
    if handler is _answer:
        return end_at_once

    def pass_on(number: int, _: object) -> None:
        _undo_bar()
        signal.signal(number, handler)
        os.kill(os.getpid(), number)

    return pass_on


def has_come() -> bool:
    """Whether a Ctrl-C came, though what it raised may have become another exception."""
    return _answer.has_come


def end_at_once(*_: Any) -> NoReturn:
    """Ends the process without cleaning up; files are written whole, so none is cut off."""
    _undo_bar()
    with contextlib.suppress(OSError):  # nobody is there to read it
        os.write(2, b"error: interrupted\n")
    os._exit(STATUS)


def _undo_bar() -> None:
    """Undoes what a bar did to the terminal; what it would do itself is not reached any more."""
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, _UNDO_BAR)
