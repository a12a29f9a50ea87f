"""The programs in processes of their own, to which anything can happen."""

import os
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from faults import child
from faults.trained import OFTEN, Trained
from invoke import Outcome, write_texts
from preloaded import start_process


class Forked(NamedTuple):
    """A program in a process of its own."""

    process: BaseProcess
    pid: int
    folder: Path

    def send(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.process.is_alive():
            os.kill(self.pid, number)

    def end(self) -> Outcome:
        """Waits for it; a signal that killed it is a negative status."""
        self.process.join(300)
        status = self.process.exitcode
        assert status is not None, f"{self.process} does not end"
        self.process.close()
        told = ((self.folder / f"{self.pid}.{kind}") for kind in ("out", "err"))
        return Outcome(status, *(path.read_text() if path.exists() else "" for path in told))


def fork(
    program: str, *flags: str, folder: Path, befalls: child.Misfortune = child.nothing
) -> Forked:
    """Starts a program; what befalls it can be pickled, and is best in `faults.child`."""
    process = start_process(child.run, program, flags, folder, befalls)
    assert process.pid is not None
    return Forked(process, process.pid, folder)


class Reference(NamedTuple):
    """A program with its flags, what a forked run of it left, and what that took."""

    program: str
    flags: tuple[str, ...]
    workdir: Path
    seconds: float
    changes: int  # of files

    def start(self, *more: str, befalls: child.Misfortune = child.nothing) -> Forked:
        """Starts it in the working directory."""
        return fork(self.program, *self.flags, *more, folder=Path.cwd(), befalls=befalls)


def fork_reference(trained: Trained, folder: Path) -> Reference:
    """What a forked program leaves that saves after every chunk."""
    program, flags = trained.program.__name__, (*trained.flags, OFTEN)
    write_texts(folder)
    seconds = 0.0
    for _ in range(2):  # the second knows what the first compiled
        for left in ("run", "cache"):
            shutil.rmtree(folder / left, ignore_errors=True)
        began = time.monotonic()
        outcome = fork(program, *flags, folder=folder, befalls=child.count_changes).end()
        seconds = time.monotonic() - began
        assert (outcome.status, outcome.err) == (0, "")
    return Reference(program, flags, folder / "run", seconds, (folder / "changes").stat().st_size)
