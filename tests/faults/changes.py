"""Every change of a file that this process is about to make: the moments when all can go wrong."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

_EVENTS = {
    *("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Act = Callable[[int, str], object]  # takes the number of a change, from 1, and its path


class _Watch:
    """Python's hook for audits, which cannot be removed again, but can do nothing."""

    def __init__(self):
        self.act: Act | None = None
        self.count = 0
        self.acting = threading.Lock()  # Orbax changes files in threads of its own
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        act = self.act
        if act is None or not _is_change(event, arguments):
            return
        if self.acting.acquire(blocking=False):  # else it is `act` that changes files
            try:
                self.count += 1
                act(self.count, str(arguments[0]))
            finally:
                self.acting.release()


_the_watch: list[_Watch] = []


def _is_change(event: str, arguments: tuple) -> bool:
    if event == "open":
        path, _, flags = arguments
        return bool(flags and flags & _WRITING) and path != os.devnull
    return event in _EVENTS


def watch(act: Act) -> None:
    """From now on calls `act` before each change; what it raises, the change raises."""
    if not _the_watch:
        _the_watch.append(_Watch())
    _the_watch[0].act, _the_watch[0].count = act, 0


@contextlib.contextmanager
def watching(act: Act) -> Iterator[None]:
    """Does so within a block."""
    watch(act)
    try:
        yield
    finally:
        _the_watch[0].act = None
