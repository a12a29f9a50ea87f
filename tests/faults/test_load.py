"""A run that trains for long, read all the while, needs no more of the machine at its end."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from invoke import SINGLE, metrics, run_elsewhere, training

from experiments import ptb

MINUTES = float(os.environ.get("LOAD_MINUTES", "4"))
LONG = [f for f in SINGLE if not f.startswith(("--train_file", "--hidden_size"))]
PAUSE = 5  # seconds
READERS = {
    "experiments.generate": ["--workdir=run", "--length=5"],
    "experiments.score": ["--workdir=run", "test.txt"],
    "experiments.report": ["run"],
}


class Needs(NamedTuple):
    """What a process holds, and what it has used so far."""

    epochs: int
    descriptors: int
    threads: int
    mebibytes: float
    cpu_seconds: float


def needs_of(pid: int, workdir: Path) -> Needs:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    ticks = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Needs(
        epochs=len(metrics(workdir)),
        descriptors=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        mebibytes=int(status["VmRSS"].split()[0]) / 1024,
        cpu_seconds=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


@pytest.mark.faults
def test_run_that_is_read_all_the_while_needs_no_more_at_its_end(folder, counted):
    (folder / "long.txt").write_text((folder / "train.txt").read_text() * 20)
    flags = ("--train_file=long.txt", "--hidden_size=64", "--samples_each_epoch=1", "--tensorboard")
    samples, end = [], time.monotonic() + 60 * MINUTES
    with training(ptb, *LONG, *flags, cwd=folder) as process:
        while time.monotonic() < end:
            time.sleep(PAUSE)
            for name, arguments in READERS.items():
                (outcome,) = run_elsewhere(name, arguments, cwd=folder)
                assert outcome.status == 0, outcome
                counted("readings of a run that trains")
            samples.append(needs_of(process.pid, folder / "run"))
            with open("/tmp/st/samples.txt", "a") as f:
                f.write(f"{samples[-1]}\n")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    epochs = [record["epoch"] for record in metrics(folder / "run")]
    assert epochs == list(range(1, len(epochs) + 1))
    counted("epochs of a run under load", len(epochs))
