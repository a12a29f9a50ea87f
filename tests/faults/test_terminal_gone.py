"""A run whose terminal is closed, or that cannot print, loses nothing by it."""

import functools
import signal

import pytest
from faults.child import lose_terminal_at_path, print_nowhere, print_to
from faults.forked import fork
from faults.results import assert_same_results
from faults.trained import OFTEN, Trained
from invoke import FLAGS, metrics

from experiments import ptb


def test_run_whose_terminal_is_closed_is_saved_and_resumes(folder):
    flags = (*FLAGS, "--workdir=run")
    losing = functools.partial(lose_terminal_at_path, "checkpoints/3/checksums.json")
    running = fork("experiments.ptb", *flags, OFTEN, folder=folder, befalls=losing)
    assert running.end().status == 128 + signal.SIGHUP
    resumed = Trained(ptb, flags, folder / "run").again()
    assert resumed.status == 0, resumed.err
    assert "resuming run after epoch 0, window 6\n" in resumed.out
    assert len(metrics(folder / "run")) == 2


@pytest.mark.faults
@pytest.mark.parametrize("befalls", [functools.partial(print_to, "/dev/full"), print_nowhere])
def test_run_that_cannot_print_trains_to_its_end(forked_model, folder, befalls, counted):
    assert forked_model.start(befalls=befalls).end().status == 0
    assert_same_results(folder / "run", forked_model.workdir)
    counted("outputs that cannot be written")
