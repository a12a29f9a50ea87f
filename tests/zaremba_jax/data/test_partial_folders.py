"""What a killed process left is removed; what a living one makes is not."""

import subprocess
import sys

import pytest

from zaremba_jax.data import partial_folders
from zaremba_jax.data.partial_folders import partial_folder

MAKER = """
import pathlib, sys
from zaremba_jax.data.partial_folders import partial_folder

with partial_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_folder_that_is_not_renamed_is_gone_and_one_that_is_stays(tmp_path):
    with partial_folder(tmp_path / "cache") as abandoned:
        assert abandoned.is_dir()
    with partial_folder(tmp_path / "cache") as kept:
        kept.rename(tmp_path / "cache" / "entry")
    assert names(tmp_path / "cache") == {"entry"}


def test_folder_of_a_living_process_is_left_alone_and_of_a_killed_one_removed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", MAKER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        (theirs,) = {other.stdout.readline().strip()}
        with partial_folder(tmp_path) as ours:
            assert {str(tmp_path / name) for name in names(tmp_path)} == {theirs, str(ours)}
        assert names(tmp_path / theirs) == {"half"}
        other.kill()
    with partial_folder(tmp_path) as ours:
        assert names(tmp_path) == {ours.name}


def test_folder_taken_for_a_dead_one_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, taken = partial_folders.fcntl.flock, []

    def late(descriptor, how):
        if not taken:
            (folder,) = tmp_path.iterdir()
            taken.append(folder)
            folder.rmdir()
        lock(descriptor, how)

    monkeypatch.setattr(partial_folders.fcntl, "flock", late)
    with partial_folder(tmp_path) as ours:
        assert ours.is_dir()
        assert ours not in taken


@pytest.mark.usefixtures("no_locks")
def test_without_locks_no_folder_is_taken_for_that_of_a_dead_process(tmp_path):
    theirs = tmp_path / f"{partial_folders._PREFIX}theirs"
    theirs.mkdir()
    with partial_folder(tmp_path) as ours:
        assert names(tmp_path) == {theirs.name, ours.name}
    assert names(tmp_path) == {theirs.name}
