"""A run that trains for long, read all the while, needs no more of the machine at its end."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from invoke import SINGLE, metrics, run_elsewhere, start

MINUTES = float(os.environ.get("LOAD_MINUTES", "4"))
EPOCHS = 10**8  # more than there is time for
LONG = [f for f in SINGLE if not f.startswith(("--train_file", "--epochs", "--hidden_size"))]
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
        len(metrics(workdir)),
        len(list((process / "fd").iterdir())),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]) / 1024,
        sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


@pytest.mark.faults
def test_run_that_is_read_all_the_while_needs_no_more_at_its_end(folder, counted):
    (folder / "long.txt").write_text((folder / "train.txt").read_text() * 20)
    flags = ("--train_file=long.txt", "--hidden_size=64", "--samples_each_epoch=1", "--tensorboard")
    endless = (f"--epochs={EPOCHS}", "--checkpoint_minutes=0", "--workdir=run")
    process = start(*LONG, *flags, *endless, cwd=folder)
    try:
        while not list(folder.glob("run/checkpoints/*/checksums.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        samples, end = [], time.monotonic() + 60 * MINUTES
        while time.monotonic() < end:
            for name, arguments in READERS.items():
                (outcome,) = run_elsewhere(name, arguments, cwd=folder)
                assert (outcome.status, len(outcome.err.splitlines())) == (0, 1), outcome
                counted("readings of a run that trains")
            samples.append(needs_of(process.pid, folder / "run"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    assert [x["epoch"] for x in metrics(folder / "run")] == list(range(1, 1 + samples[-1].epochs))
    print(*samples, sep="\n")
    counted("epochs of a run under load", samples[-1].epochs)
