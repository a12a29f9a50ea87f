"""A system that refuses to write ends a run in one line, and nothing that was saved is lost."""

import errno
import functools
import os
import shutil
import subprocess
import sys

import pytest
from faults.changes import watching
from faults.child import limit_files
from faults.results import assert_same_results
from invoke import ROOT, assert_refused

REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES]


def changes_of(trained):
    """How many files a run in the working directory changes; it leaves nothing."""
    count = []
    with watching(lambda *_: count.append(1)):
        assert trained.again().status == 0
    remove_all()
    return len(count)


def remove_all():
    for name in ("run", "cache"):
        shutil.rmtree(name, ignore_errors=True)


def refusing(first, code):
    """Has the system refuse every change of a file from the `first` on."""

    def refuse(change, path):
        if change >= first:
            raise OSError(code, os.strerror(code), path)

    return watching(refuse)


def ends_in_one_line_and_goes_on(trained, folder, meeting):
    """Asserts it of a run that meets something; returns the status with which it ended."""
    with meeting:
        outcome = trained.again()
    if outcome.status != 0:
        assert_refused(outcome, ";", status=outcome.status)
    goes_on = trained.again()
    assert (goes_on.status, goes_on.err) == (0, "")
    assert_same_results(folder / "run", trained.workdir)
    return outcome.status


def test_disk_that_fills_up_ends_a_run_in_one_line(model, folder):
    full = refusing(40, errno.ENOSPC)
    assert ends_in_one_line_and_goes_on(model, folder, full) != 0


@pytest.mark.faults
def test_wherever_a_change_is_refused_the_run_ends_in_one_line_and_goes_on(model, folder, counted):
    for change in range(1, changes_of(model) + 1):
        code = REFUSALS[change % len(REFUSALS)]
        ends_in_one_line_and_goes_on(model, folder, refusing(change, code))
        counted("refused changes of files")
        remove_all()


@pytest.mark.faults
@pytest.mark.parametrize("size", range(200, 6_000, 600))
def test_whatever_size_of_file_is_refused_the_run_ends_in_one_line_and_goes_on(
    forked_model, folder, size, counted
):
    outcome = forked_model.start(befalls=functools.partial(limit_files, size)).end()
    if outcome.status != 0:
        assert_refused(outcome, "file too large", status=1)
        assert "run" in outcome.err or "cache" in outcome.err
    outcome = forked_model.start().end()
    assert (outcome.status, outcome.err) == (0, "")
    assert_same_results(folder / "run", forked_model.workdir)
    counted("refused sizes of files")


def move_away():
    if os.path.exists("run"):
        os.rename("run", "moved")


def remove():
    shutil.rmtree("run", ignore_errors=True)


@pytest.mark.faults
def test_wherever_its_folder_goes_away_the_run_says_so_and_goes_on(model, folder, counted):
    for number in range(1, changes_of(model) + 1):
        lose = (move_away, remove)[number % 2]
        with watching(lambda change, _, at=number, lose=lose: lose() if change == at else None):
            outcome = model.again()
        if outcome.status != 0:
            assert_refused(outcome, ";", status=outcome.status)
            if os.path.exists("moved"):
                assert not os.path.exists("run/config.json")
                remove()
                os.rename("moved", "run")
            assert model.again().status == 0
        assert_same_results(folder / "run", model.workdir)
        counted("folders lost")
        shutil.rmtree("moved", ignore_errors=True)
        remove_all()


# Both need the right to mount; in a name space of their own, nobody else sees it.
ON_A_DISK_OF_ITS_OWN = """
mkdir disk && mount -t tmpfs -o size=$SIZE none disk || exit 77
"$@" & training=$!
$MEANWHILE
wait $training; echo "status $?" >&2
mount -o remount,rw,size=10m disk
"$@" || exit 1
cp -r disk/run kept && rm kept/curves.png  # the runs compared with draw none
"""
UNTIL_READ_ONLY = """
until [ -e disk/run/checkpoints/17/checksums.json ]; do sleep 0.01; done
until mount -o remount,ro disk 2>/dev/null; do :; done
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("size", "meanwhile"),
    [("10m", UNTIL_READ_ONLY), *((f"{size}k", "") for size in (20, 60, 120))],
)
def test_disk_that_is_full_or_becomes_read_only_loses_nothing(
    forked_model, folder, size, meanwhile, counted
):
    command = (sys.executable, "-m", forked_model.program, *forked_model.flags)
    moved = ("--workdir=disk/run", "--cache_dir=disk/cache")
    script = ON_A_DISK_OF_ITS_OWN.replace("$MEANWHILE", meanwhile)
    completed = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", *command, *moved],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SIZE": size},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if completed.returncode in (77, 1) and "ermi" in completed.stderr:
        pytest.skip("mounting is not permitted here")
    assert completed.returncode == 0, completed
    *told, status = completed.stderr.splitlines()
    assert (status, told) == ("status 0", []) or len(told) == 1, completed
    assert_same_results(folder / "kept", forked_model.workdir)
    counted("disks of their own")
