"""A run that is killed at any moment ends, given again, with the bytes of one never interrupted."""

import contextlib
import functools
import os
import random
import shutil
import signal
import time

import pytest
from faults.changes import watching
from faults.child import die_beyond, send_at_change
from faults.results import assert_same_results
from invoke import content

KILLS = 24  # of each program in each way


def at_one_moment(folder):
    """The content of a folder, though TensorStore's own threads may be changing it."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            before = content(folder)
            if content(folder) == before:
                return before


def crash_points(trained, folder):
    """Contents of the folder before every change of a file: what a kill at that moment leaves.

    Those that differ, in order.
    """
    points = [content(folder)]

    def note(*_):
        now = at_one_moment(folder)
        if now != points[-1]:
            points.append(now)

    with watching(note):
        outcome = trained.again()
    assert outcome.status == 0, outcome.err
    return points


def write(folder, point):
    folder.mkdir()
    for path, data in point.items():  # a folder comes before what it holds
        (folder / path).mkdir() if data is None else (folder / path).write_bytes(data)


def assert_goes_on(trained, folder, point):
    shutil.rmtree(folder)
    write(folder, point)
    os.chdir(folder)
    outcome = trained.again()
    assert (outcome.status, outcome.err) == (0, ""), sorted(point)
    assert_same_results(folder / "run", trained.workdir)


def test_run_goes_on_from_what_a_kill_leaves_at_some_changes_of_files(model, folder):
    points = crash_points(model, folder)
    for point in points[1 :: len(points) // 3]:
        assert_goes_on(model, folder, point)


@pytest.mark.faults
def test_run_goes_on_from_what_a_kill_leaves_at_every_change_of_a_file(trained, folder, counted):
    for point in crash_points(trained, folder):
        assert_goes_on(trained, folder, point)
        counted("crash points")


def at_random(forked, source):
    """Kills a run at any moment from its first line of Python on."""
    running = forked.start()
    time.sleep(source.uniform(0, forked.seconds))
    running.process.kill()
    return running.end()


def before_a_change(forked, source):
    """Kills a run just before it makes, renames or removes any file, of a checkpoint most often."""
    number = source.randint(1, forked.changes // 5)
    return forked.start(befalls=functools.partial(send_at_change, number, signal.SIGKILL)).end()


def within_a_write(forked, source):
    """Kills a run within the first write that would have a file larger than some size."""
    size = source.choice([10, 100, 300, 700, 1_000, 1_500, 2_000, 3_000, 5_000])
    return forked.start(befalls=functools.partial(die_beyond, size)).end()


@pytest.mark.faults
@pytest.mark.parametrize("kill", [at_random, before_a_change, within_a_write])
def test_run_killed_again_and_again_ends_as_one_never_killed(forked, folder, kill, counted):
    source, kills = random.Random(kill.__name__), 0
    while kills < KILLS:
        outcome = kill(forked, source)
        assert outcome.err == ""
        if outcome.status < 0:
            kills += 1
            counted(f"killed {kill.__name__.replace('_', ' ')}")
        else:
            assert_finished(outcome, forked, folder)
            shutil.rmtree("run")
            shutil.rmtree("cache")
    assert_finished(forked.start().end(), forked, folder)


def assert_finished(outcome, forked, folder):
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_results(folder / "run", forked.workdir)
