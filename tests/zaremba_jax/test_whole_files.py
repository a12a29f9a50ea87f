"""Files that are written whole, by one process or by several at the same time."""

import errno
import os
import threading
from pathlib import Path

import pytest
from faults.changes import watching

from zaremba_jax.whole_files import PARTIAL, write_whole


def test_who_writes_a_file_that_another_is_writing_waits_for_it(tmp_path, monkeypatch):
    path, replace = tmp_path / "page", os.replace
    second = threading.Thread(target=write_whole, args=(path, b"second"))

    def overtaken(*names):
        monkeypatch.setattr(os, "replace", replace)
        second.start()
        second.join(0.5)  # it would end, if it did not wait
        replace(*names)
        assert path.read_bytes() == b"first"

    monkeypatch.setattr(os, "replace", overtaken)
    write_whole(path, b"first")
    second.join(60)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_file_is_taken_over(tmp_path):
    path = tmp_path / "page"
    (tmp_path / f"page{PARTIAL}").write_bytes(b"longer than the page")
    write_whole(path, b"page")
    assert path.read_bytes() == b"page"
    assert list(tmp_path.iterdir()) == [path]


def test_error_names_the_file_that_was_to_be_written(tmp_path, monkeypatch):
    path = tmp_path / "no" / "page"
    with pytest.raises(FileNotFoundError) as error:
        write_whole(path, b"page")
    assert error.value.filename == str(path)

    def refuse(*names):
        raise PermissionError(errno.EACCES, "no", *map(str, names))

    path.parent.mkdir()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError) as error:
        write_whole(path, b"page")
    assert (error.value.filename, error.value.filename2) == (str(path), None)


@pytest.mark.usefixtures("no_locks")
def test_file_is_written_without_locks_too(tmp_path):
    write_whole(tmp_path / "page", b"page")
    assert (tmp_path / "page").read_bytes() == b"page"


def test_file_is_written_by_the_handle_that_has_its_lock(tmp_path):
    """Over SMB a lock keeps out all others, those of the same process too."""
    changes = []
    with watching(lambda _, path: changes.append(Path(path).name)):
        write_whole(tmp_path / "page", b"page")
    assert changes == [f"page{PARTIAL}"] * 2  # opened once, and renamed
