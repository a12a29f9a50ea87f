"""Runs the programs on a text so small that training takes a second."""

import contextlib
import csv
import dataclasses
import json
import os
import pkgutil
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
from matplotlib.figure import Figure
from preloaded import ROOT, call, run_line, run_lines

from experiments import ptb
from zaremba_jax.array_types import TrainState
from zaremba_jax.checkpoint import CHECKSUMS_FILE, restore
from zaremba_jax.config import override
from zaremba_jax.presets import QUICK
from zaremba_jax.train import init_train_state

WORDS = "abcdefgh"
SETTINGS = {
    "hidden_size": 8,
    "layers": 1,
    "batch_size": 2,
    "unroll": 5,
    "epochs": 2,
    "dropout": 0.25,
    "constant_epochs": 1,
    "keep": "last",
}
CONFIG = override(QUICK, corpus="files", **SETTINGS)
TEXT = ("--train_file=train.txt", "--valid_file=valid.txt", "--test_file=test.txt")
FLAGS = (*TEXT, "--chunk=3", *(f"--{name}={value}" for name, value in SETTINGS.items()))
WINDOWS = 119  # per epoch of the text of `write_texts`
EPOCHS = 10**8  # more than there is time for
CHUNK = 17  # divides an epoch, so that only one program is compiled
SINGLE = tuple(f"--chunk={CHUNK}" if f.startswith("--chunk") else f for f in FLAGS)
MEMBERS = (*SINGLE, "--members=3", "--sizes=1,2")  # for experiments.ensemble
SWEPT = tuple(f for f in SINGLE if not f.startswith("--dropout"))  # for experiments.sweep
# What differs between two runs of the same settings by its nature.
OF_ITS_TIME = {
    *("seconds", "words_per_second", "date", "command"),
    *("peak_host_memory_bytes", "peak_device_memory_bytes"),
}


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def write_texts(folder: Path) -> None:
    """1,200 tokens to train on, 210 each to validate and test."""
    source = random.Random(0)
    for name, lines in (("train.txt", 200), ("valid.txt", 35), ("test.txt", 35)):
        words = (" ".join(source.choices(WORDS, k=5)) for _ in range(lines))
        (folder / name).write_text("".join(f"{line}\n" for line in words))


def start(*flags: str, cwd: Path, program: ModuleType = ptb, **env: str) -> subprocess.Popen[str]:
    """Starts the program as a user does, its output in pipes."""
    return start_python("-m", program.__name__, *flags, cwd=cwd, **env)


def start_python(*arguments: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Starts Python, which can import the project and its tests."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def training(program: ModuleType, *flags: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has saved a checkpoint in `run`, and saves as often as it can."""
    often = (f"--epochs={EPOCHS}", "--checkpoint_minutes=0", "--workdir=run")
    process = start(*flags, *often, cwd=cwd, program=program)
    try:
        while not list(cwd.glob(f"run/checkpoints/*/{CHECKSUMS_FILE}")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


def run_process(*flags: str, cwd: Path) -> Outcome:
    with start(*flags, cwd=cwd) as process:
        out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def run(*flags: str, program: ModuleType = ptb, draw: bool = False) -> Outcome:
    """Does the same in this process and its working directory, which saves the start-up.

    Learning curves take a third of a short run; they are drawn only where a test asks for it.
    """
    drawn = draw or program is not ptb
    with contextlib.nullcontext() if drawn else mock.patch.object(Figure, "savefig"):
        return Outcome(*run_line(program, [program.__name__, *flags]))


def run_in(folder: Path, *flags: str, program: ModuleType = ptb) -> Outcome:
    """Does so in a folder, which gets the texts; the program must end well."""
    write_texts(folder)
    with contextlib.chdir(folder):
        outcome = run(*flags, program=program)
    assert outcome.status == 0, outcome.err
    return outcome


def run_elsewhere(name: str, *lines: list[str], cwd: Path, before: str = "") -> list[Outcome]:
    """Runs a program on each list of flags, all in one other process, after some lines of Python.

    For programs with flags of the same names as another program's.
    """
    return [Outcome(*outcome) for outcome in call(run_lines, name, lines, before, cwd=cwd)]


def run_on_devices(count: int, check: Callable[..., None], *arguments: Any) -> None:
    """Calls a function of a module of tests in a process with `count` CPU devices."""
    call(_on_devices, count, f"{check.__module__}:{check.__name__}", *arguments, cwd=ROOT)


def _on_devices(count: int, name: str, *arguments: Any) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    pkgutil.resolve_name(name)(*arguments)  # only now, since its module may ask for the devices


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return opened.getsockname()[1]


def assert_refused(outcome: Outcome, *telling: str, status: int = 2) -> None:
    """Asserts that standard error is one line that contains all of `telling`."""
    assert outcome.status == status
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert not [part for part in telling if part not in line], line


def content(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def table(workdir: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((workdir / "metrics.csv").read_text().splitlines()))


def summary_of(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def stored(workdir: Path) -> Any:
    """The arrays of the newest checkpoint."""
    newest = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        metadata = reader.metadata(newest / "state").item_metadata
        template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), metadata)
        return reader.restore(newest / "state", template)


def last_state(workdir: Path) -> TrainState:
    """The state in the last checkpoint, its key as plain numbers."""
    like = init_train_state(CONFIG, len(WORDS) + 1)
    restored = restore(workdir / "checkpoints", lambda record: like)
    assert restored is not None
    return dataclasses.replace(restored.state, key=jax.random.key_data(restored.state.key))


def assert_same_run(workdir: Path, other: Path) -> None:
    """Asserts bit-identical states, and the same metrics except for timings."""
    actual, expected = (
        [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(last_state(path))]
        for path in (workdir, other)
    )
    assert actual == expected
    assert untimed(metrics(workdir)) == untimed(metrics(other))
    assert untimed(table(workdir)) == untimed(table(other))


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what differs by its nature."""
    return [
        {name: x for name, x in record.items() if name not in OF_ITS_TIME} for record in records
    ]
