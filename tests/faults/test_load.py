"""A run that trains for long, read all the while, needs no more of the machine at its end."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from invoke import CHUNK, SINGLE, metrics, run_elsewhere, training

from experiments import ptb

MINUTES = float(os.environ.get("LOAD_MINUTES", "4"))
PAUSE = 5  # seconds between readings
LONG = [f for f in SINGLE if not f.startswith(("--train_file", "--hidden_size"))]
MORE = ("--train_file=long.txt", "--hidden_size=64", "--samples_each_epoch=1", "--tensorboard")
READERS = {
    "experiments.generate": ["--workdir=run", "--length=5"],
    "experiments.score": ["--workdir=run", "test.txt"],
    "experiments.report": ["run"],
}
MIB_PER_SAVE = 0.02  # Orbax and TensorStore keep a little less


class Needs(NamedTuple):
    """What a process holds, and what it has used and done so far."""

    descriptors: int
    threads: int
    mebibytes: float
    cpu_seconds: float
    windows: int


def needs_of(pid: int, workdir: Path) -> Needs:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Needs(
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        mebibytes=int(status["VmRSS"].split()[0]) / 1024,
        cpu_seconds=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        windows=max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*[0-9]")),
    )


def assert_no_more_is_needed(early: list[Needs], late: list[Needs]) -> None:
    for field in ("descriptors", "threads"):
        most, before = (max(getattr(x, field) for x in part) for part in (late, early))
        assert most <= before + 5, field
    saves = (late[-1].windows - early[0].windows) / CHUNK
    assert late[-1].mebibytes - early[0].mebibytes < 10 + MIB_PER_SAVE * saves
    of_late, of_early = (
        (part[-1].cpu_seconds - part[0].cpu_seconds) / (part[-1].windows - part[0].windows)
        for part in (late, early)
    )
    assert of_late < 1.5 * of_early


@pytest.mark.faults
def test_run_that_is_read_all_the_while_needs_no_more_at_its_end(folder, counted):
    (folder / "long.txt").write_text((folder / "train.txt").read_text() * 20)
    samples, end = [], time.monotonic() + 60 * MINUTES
    with training(ptb, *LONG, *MORE, cwd=folder) as process:
        while time.monotonic() < end:
            for name, arguments in READERS.items():
                (outcome,) = run_elsewhere(name, arguments, cwd=folder)
                assert outcome.status == 0, outcome
                counted("readings of a run that trains")
            samples.append(needs_of(process.pid, folder / "run"))
            time.sleep(PAUSE)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    epochs = [record["epoch"] for record in metrics(folder / "run")]
    assert epochs == list(range(1, len(epochs) + 1))
    third = len(samples) // 3
    assert_no_more_is_needed(samples[third : 2 * third], samples[2 * third :])
    counted("checkpoints of a run under load", samples[-1].windows // CHUNK)
