"""Ctrl-C and termination, put off until the run can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int]]:
    """Defers SIGINT and SIGTERM; the second of a kind has its usual effect.

    Yields:
      A function that returns the first signal's number, 0 if none has come.
    """
    received: list[int] = []
    handlers = {}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
