"""What befalls a forked process before its program starts, and the program.

Nothing here imports a program: their flags have the same names, so that a process can run one only.
"""

import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.changes import watch

from experiments.cli import program as command_line
from experiments.endings import ctrl_c

Misfortune = Callable[[], None]


def nothing() -> None:
    """What befalls most processes."""


def run(name: str, flags: tuple[str, ...], folder: Path, befalls: Misfortune) -> None:
    """Runs a program in a folder that gets its output, in files named by the process."""
    os.chdir(folder)
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{os.getpid()}.{kind}", os.O_CREAT | os.O_WRONLY), descriptor)
    sys.modules["matplotlib"] = None  # pyright: ignore[reportArgumentType]  # pictures take long
    ctrl_c.install()
    befalls()
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    sys.argv = [name, *flags]
    program = importlib.import_module(name)
    try:
        command_line.run(program.main)
    except Exception as error:  # multiprocessing would put a line of its own before it
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def _stream(descriptor: int) -> Any:
    """What Python has for an output of its process: nothing if that is closed."""
    try:
        return open(descriptor, "w", buffering=1, closefd=False)
    except OSError:
        return None


def count_changes() -> None:
    """Writes a byte to the file `changes` for every change of another."""
    counted = os.open("changes", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    watch(lambda *_: os.write(counted, b"."))


def send_at_change(number: int, *signals: int) -> None:
    """Sends the process signals just before its `number`th change of a file."""

    def send(change: int, _: str) -> None:
        if change == number:
            for each in signals:
                os.kill(os.getpid(), each)

    watch(send)


def at_path(part: str, act: Callable[[], None]) -> None:
    """Calls `act` just before the first change of a file whose path has `part`."""
    left = [act]

    def hear(_: int, path: str) -> None:
        if left and part in path:
            left.pop()()

    watch(hear)


def send_at_path(part: str, number: int) -> None:
    """Sends the process a signal just before such a change."""
    at_path(part, lambda: signal.raise_signal(number))


def lose_terminal_at_path(part: str) -> None:
    """Has all output go to a terminal that is closed just before such a change."""
    ours, terminal = os.openpty()
    print_to(os.ttyname(terminal))
    os.close(terminal)
    os.set_blocking(1, False)  # nobody reads it: a full one must not hold the run up

    def close() -> None:
        os.close(ours)
        for _ in range(2):  # the shell sends one, the system another
            signal.raise_signal(signal.SIGHUP)

    at_path(part, close)


def limit_files(size: int) -> None:
    """Refuses to write beyond so many bytes of any file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die_beyond(size: int) -> None:
    """Kills the process within the first write beyond so many bytes of a file."""
    limit_files(size)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def few_descriptors(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def little_memory(mebibytes: int) -> None:
    """Limits the address space to this much more than it is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def few_processes(limit: int) -> None:
    """Limits the threads of the user, who must not be the superuser then."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    if os.getuid() == 0:
        os.setuid(65534)


def set_clock_back(calls: int) -> None:
    """Has the clock go back by a day after some calls."""
    now, now_ns, told = time.time, time.time_ns, []

    def seconds_back() -> int:
        told.append(1)
        return 86_400 if len(told) > calls else 0

    time.time = lambda: now() - seconds_back()
    time.time_ns = lambda: now_ns() - seconds_back() * 10**9


def print_to(path: str) -> None:
    """Has all output go to a device or a file."""
    for descriptor in (1, 2):
        os.dup2(os.open(path, os.O_WRONLY | os.O_NOCTTY), descriptor)


def print_nowhere() -> None:
    """Closes the output."""
    for descriptor in (1, 2):
        os.close(descriptor)


def break_function(path: str) -> None:
    """Has a function of the library add arrays whose shapes do not go together."""
    import numpy as np

    def broken(*_: Any, **__: Any) -> Any:
        return np.zeros(2) + np.zeros(3)

    module, _, name = path.rpartition(".")
    whole = getattr(importlib.import_module(f"zaremba_jax.{module}"), name)
    for each in list(sys.modules.values()):
        if getattr(each, name, None) is whole:
            setattr(each, name, broken)
