"""A run that is killed or stopped at any moment ends, given again, like an uninterrupted one."""

import random
import signal
import time

import pytest
from invoke import FLAGS, assert_same_run, start, write_texts

OFTEN = "--checkpoint_minutes=0"
KILLS = 200
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The workdir of a run that was never interrupted, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("reference")
    write_texts(folder)
    began = time.monotonic()
    with start(*FLAGS, "--workdir=run", OFTEN, cwd=folder) as process:
        assert process.wait(300) == 0, process.communicate()
    return folder / "run", time.monotonic() - began


def hit(folder, delays, *numbers):
    """Status and error of a run that gets signals after delays in seconds, if it still lives."""
    with start(*FLAGS, "--workdir=run", OFTEN, cwd=folder) as process:
        for delay, number in zip(delays, numbers, strict=True):
            time.sleep(delay)
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
    return process.returncode, err


def assert_ends_as(reference, folder):
    status, err = hit(folder, ())
    assert (status, err) == (0, "")
    assert_same_run(folder / "run", reference)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(KILLS // 10))
def test_run_killed_ten_times_at_random_ends_as_one_never_interrupted(folder, reference, seed):
    source = random.Random(seed)
    for _ in range(10):
        hit(folder, [source.uniform(0, reference[1])], signal.SIGKILL)
    assert_ends_as(reference[0], folder)


@pytest.mark.faults
@pytest.mark.parametrize("name", STOPPING)
@pytest.mark.parametrize("seed", range(4))
def test_run_told_to_stop_once_or_twice_at_random_shows_no_traceback(folder, reference, name, seed):
    source, number = random.Random(f"{name} {seed}"), signal.Signals[name]
    for again in (0.005, 0.05, 1):
        status, err = hit(folder, [source.uniform(0.3, reference[1]), again], *[number, number])
        assert status in (0, 128 + number, -number), err
        assert "Traceback" not in err
        assert len(err.splitlines()) <= 1
    assert_ends_as(reference[0], folder)
