"""Requests to stop, put off until the run can be saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.endings import ctrl_c

# A closed terminal, a scheduler and a limit of time may send theirs again, in no impatience.
_REPEATED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, *_REPEATED)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int]]:
    """Defers what asks a program to stop: Ctrl-C, termination, quit, and those of `_REPEATED`.

    The second of a kind has its usual effect, but for the latter, which are repeated as a matter of
    course. What the program ignores stays ignored.

    Yields:
      A function that returns the first signal's number, 0 if none has come.
    """
    received: list[int] = [signal.SIGINT] if ctrl_c.has_come() else []  # and was swallowed
    handlers = {}

    def receive(number: int, _: object) -> None:
        received.append(number)
        if number not in _REPEATED:
            signal.signal(number, ctrl_c.after_one(handlers[number]))

    for number in _DEFERRED:
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers[number] = signal.getsignal(number)  # first: one may come at any time
            signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
