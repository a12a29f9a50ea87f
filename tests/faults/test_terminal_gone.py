"""A run whose terminal is closed, or that cannot print, loses nothing by it."""

import functools
import os
import signal
import time

import pytest
from faults.child import print_nowhere, print_to
from faults.forked import fork
from faults.results import assert_same_results
from faults.trained import OFTEN, Trained
from invoke import FLAGS, WINDOWS, metrics

from experiments import ptb


def test_run_whose_terminal_is_closed_is_saved_and_resumes(folder):
    ours, terminal = os.openpty()
    on_terminal = functools.partial(print_to, os.ttyname(terminal))
    flags = (*FLAGS, "--workdir=run")
    running = fork("experiments.ptb", *flags, OFTEN, folder=folder, befalls=on_terminal)
    while not list(folder.glob("run/checkpoints/*/checksums.json")):
        assert running.process.is_alive(), os.read(ours, 100_000)
        time.sleep(0.01)
    os.close(terminal)
    os.close(ours)
    for _ in range(2):  # the shell sends one, the system another
        running.send(signal.SIGHUP)
        time.sleep(0.02)
    assert running.end().status == 128 + signal.SIGHUP
    saved = max(int(path.parent.name) for path in folder.glob("run/checkpoints/*/checksums.json"))
    assert 0 < saved < WINDOWS
    resumed = Trained(ptb, flags, folder / "run").again()
    assert resumed.status == 0, resumed.err
    assert f"resuming run after epoch 0, window {saved}" in resumed.out
    assert len(metrics(folder / "run")) == 2


@pytest.mark.faults
@pytest.mark.parametrize("befalls", [functools.partial(print_to, "/dev/full"), print_nowhere])
def test_run_that_cannot_print_trains_to_its_end(forked_model, folder, befalls, counted):
    assert forked_model.start(befalls=befalls).end().status == 0
    assert_same_results(folder / "run", forked_model.workdir)
    counted("outputs that cannot be written")
