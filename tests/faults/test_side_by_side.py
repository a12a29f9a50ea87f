"""Processes that share a folder or a cache, or train together, do each other no harm."""

import random
import time
from pathlib import Path

import pytest
from faults.forked import fork
from faults.results import assert_same_results
from faults.trained import OFTEN, PROGRAMS
from invoke import assert_refused, free_port

PROCESSES = 3


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_of_processes_on_one_folder_one_trains_and_the_others_say_so(
    forked_model, folder, seed, counted
):
    source, running = random.Random(seed), []
    for _ in range(PROCESSES):
        running.append(forked_model.start())
        time.sleep(source.uniform(0, 0.3))
    outcomes = [each.end() for each in running]
    for outcome in outcomes:
        if outcome.status != 0:
            assert_refused(outcome, "run: another process trains there; wait for it to end")
    assert 0 in [outcome.status for outcome in outcomes]
    assert_same_results(folder / "run", forked_model.workdir)
    counted("processes on one folder", PROCESSES)


@pytest.mark.faults
@pytest.mark.parametrize("killed", [0, 1])
def test_processes_on_one_cache_all_train_on_the_same_text(forked_model, folder, killed, counted):
    running = [forked_model.start(f"--workdir=run-{number}") for number in range(PROCESSES)]
    for each in running[:killed]:
        time.sleep(0.1)
        each.process.kill()
    for number, each in enumerate(running):
        outcome = each.end()
        if number >= killed:
            assert (outcome.status, outcome.err) == (0, "")
            assert_same_results(folder / f"run-{number}", forked_model.workdir)
    counted("processes on one cache", PROCESSES)


def on_two_hosts(*flags):
    """Starts an ensemble on two hosts, which are two processes here."""
    program, settings = PROGRAMS["ensemble"]
    joined = (f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", OFTEN)
    return [
        fork(
            program.__name__, *settings, *joined, f"--process_id={rank}", *flags, folder=Path.cwd()
        )
        for rank in range(2)
    ]


def assert_trained(hosts):
    outcomes = [host.end() for host in hosts]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes


@pytest.mark.faults
def test_run_of_two_hosts_that_loses_one_at_random_goes_on(folder, counted):
    source, began = random.Random(0), time.monotonic()
    assert_trained(on_two_hosts("--workdir=reference"))
    seconds = time.monotonic() - began
    for lost in (0, 1, 0, 1):
        hosts = on_two_hosts("--workdir=run")
        time.sleep(source.uniform(0.2, 0.8) * seconds)
        for host in (hosts[lost], hosts[1 - lost]):  # the other would wait for minutes
            host.process.kill()
            host.end()
        counted("hosts lost")
    assert_trained(on_two_hosts("--workdir=run"))
    assert_same_results(folder / "run", folder / "reference")
