"""A run that meets a limit of the system, or a clock that is set back, loses nothing."""

import functools
import os
import signal
import tempfile
from pathlib import Path

import pytest
from faults import child
from faults.results import assert_same_results
from invoke import write_texts

LIMITS = [
    *(functools.partial(child.few_descriptors, limit) for limit in (10, 12, 16, 24)),
    *(functools.partial(child.little_memory, size) for size in (20, 60, 150, 400)),
    *(functools.partial(child.few_processes, limit) for limit in (1, 4, 8, 16)),
]


@pytest.fixture
def open_folder(monkeypatch):
    """A working directory with the texts that any user can write to."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        write_texts(Path(name))
        monkeypatch.chdir(name)
        yield Path(name)


@pytest.mark.faults
@pytest.mark.parametrize("limit", LIMITS, ids=lambda x: f"{x.func.__name__} {x.args[0]}")
def test_run_under_a_limit_goes_on_without_it(forked_model, open_folder, limit, counted):
    outcome = forked_model.start(befalls=limit).end()
    if outcome.status != -signal.SIGABRT:  # so XLA ends without the memory or threads it needs
        assert outcome.status in (0, 1, 2), outcome
        assert len(outcome.err.splitlines()) <= 1, outcome
    for path in open_folder.rglob("*"):
        os.chmod(path, 0o777)
    goes_on = forked_model.start().end()
    assert (goes_on.status, goes_on.err) == (0, "")
    assert_same_results(open_folder / "run", forked_model.workdir)
    counted("limits")


@pytest.mark.faults
@pytest.mark.parametrize("calls", [0, 50])
def test_run_whose_clock_is_set_back_is_the_same_run(forked_model, folder, calls, counted):
    outcome = forked_model.start(befalls=functools.partial(child.set_clock_back, calls)).end()
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_results(folder / "run", forked_model.workdir)
    counted("clocks set back")
