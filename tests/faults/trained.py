"""Programs that train for a second or two, and the results of each when nothing goes wrong."""

import contextlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

from invoke import SINGLE, SWEPT, Outcome, run, write_texts

from experiments import ensemble, ptb, sweep

OFTEN = "--checkpoint_minutes=0"


class Trained(NamedTuple):
    """A program with its flags, and the workdir of a run of it that nothing interrupted."""

    program: ModuleType
    flags: tuple[str, ...]
    workdir: Path

    def again(self, *more: str) -> Outcome:
        """Runs it in the working directory, in this process; pictures would take most of it."""
        with mock.patch.dict(sys.modules, {"matplotlib": None}):
            return run(*self.flags, *more, program=self.program)


PROGRAMS = {
    "ptb": (ptb, SINGLE),
    "ensemble": (ensemble, (*SINGLE, "--members=2")),
    "sweep": (sweep, (*SWEPT, "--vary=dropout=0,0.25")),
}


def train(name: str, folder: Path) -> Trained:
    program, flags = PROGRAMS[name]
    trained = Trained(program, (*flags, "--workdir=run", "--cache_dir=cache"), folder / "run")
    write_texts(folder)
    with contextlib.chdir(folder):
        outcome = trained.again()
    assert outcome.status == 0, outcome.err
    return trained
