"""A disk that takes no more ends a run in one line, and the same command goes on after that."""

import pytest
from invoke import FLAGS, Outcome, metrics, run, start_python

OFTEN = "--checkpoint_minutes=0"
# The system refuses to write more than so many bytes to any file, as a full disk does.
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("experiments.ptb", run_name="__main__", alter_sys=True)
"""


def assert_ends_in_one_line(folder, limit):
    command = ("-c", LIMITED, str(limit), *FLAGS, f"--workdir=run-{limit}", OFTEN)
    with start_python(*command, cwd=folder) as process:
        outcome = Outcome(0, *process.communicate(timeout=300))
    assert process.returncode == 1, outcome
    (line,) = outcome.err.splitlines()
    assert f"run-{limit}/" in line or "encoded" in line
    assert "file too large" in line
    assert "free some space" in line or "is the disk full?" in line


def test_run_whose_checkpoint_meets_a_full_disk_ends_in_one_line(folder):
    assert_ends_in_one_line(folder, 2_000)


@pytest.mark.faults
@pytest.mark.parametrize("limit", range(200, 12_000, 400))
def test_wherever_a_run_meets_a_full_disk_it_ends_in_one_line_and_goes_on(folder, limit):
    assert_ends_in_one_line(folder, limit)
    assert run(*FLAGS, f"--workdir=run-{limit}").status == 0
    assert len(metrics(folder / f"run-{limit}")) == 2
