"""A run that is told to stop, at any moment and however often, saves and says so in one line."""

import functools
import random
import signal
import time

import pytest
from faults.child import send_at_change
from faults.results import assert_same_results

STOPPING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


def assert_stopped(outcome, number):
    assert outcome.status in (0, 128 + number, -number), outcome
    assert len(outcome.err.splitlines()) <= 1, outcome
    assert "Traceback" not in outcome.err


def assert_ends_as(forked_model, folder):
    outcome = forked_model.start().end()
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_results(folder / "run", forked_model.workdir)


@pytest.mark.faults
@pytest.mark.parametrize("name", STOPPING)
def test_run_told_to_stop_at_random_once_or_twice_goes_on(forked_model, folder, name, counted):
    source, number = random.Random(name), signal.Signals[name]
    for again in (None, 0.01, 0.3):
        running = forked_model.start()
        time.sleep(source.uniform(0.2, forked_model.seconds))
        running.send(number)
        if again is not None:
            time.sleep(again)
            running.send(number)
        outcome = running.end()
        assert_stopped(outcome, number)
        counted("runs stopped at random", outcome.status != 0)
    assert_ends_as(forked_model, folder)


@pytest.mark.faults
@pytest.mark.parametrize("name", STOPPING)
def test_run_told_to_stop_once_or_twice_while_it_saves_goes_on(forked_model, folder, name, counted):
    source, number = random.Random(name), signal.Signals[name]
    for times in (1, 2):
        # Within the first half, of which the run that goes on has as much left.
        change = source.randint(forked_model.changes // 10, forked_model.changes // 2)
        hit = functools.partial(send_at_change, change, *[number] * times)
        outcome = forked_model.start(befalls=hit).end()
        assert_stopped(outcome, number)
        counted("runs stopped while saving", outcome.status != 0)
    assert_ends_as(forked_model, folder)
