"""The programs in processes of their own that cost no import: forked from one that has them."""

import functools
import multiprocessing
import os
import shutil
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from faults import child
from faults.trained import OFTEN, Trained
from invoke import ROOT, Outcome, write_texts

PRELOADED = [
    "faults.child",
    "experiments.training.ensemble_run",
    "experiments.training.single_run",
    "experiments.training.tensorboard",
    "experiments.reports.summary",
    "experiments.reports.figures",
    "zaremba_jax.data.published",
    "zaremba_jax.data.toy_corpus",
    "zaremba_jax.inference.text_scoring",
    "zaremba_jax.interop.model_file",
]
# Its children keep what they compile, for each other.
KEEPING = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
}


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


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    kept = tempfile.mkdtemp(dir=os.environ["XDG_CACHE_HOME"])
    with mock.patch.dict(os.environ, KEEPING, JAX_COMPILATION_CACHE_DIR=kept):
        forkserver.ensure_running()
    return context


def fork(
    program: str, *flags: str, folder: Path, befalls: child.Misfortune = child.nothing
) -> Forked:
    """Starts a program; what befalls it can be pickled, and is best in `faults.child`."""
    process = _server().Process(target=child.run, args=(program, flags, folder, befalls))
    process.start()
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
