"""Folders in the making: what a killed process left of one, the next removes."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "partial-"


@contextlib.contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new folder to fill and to rename, removed at the end if it still has this name.

    Those that killed processes left in `parent` are removed before. The living hold a lock on
    theirs. On a file system without locks nobody can tell them apart, and all are kept.

    Raises:
      OSError: it cannot be made.
    """
    for left in parent.glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    partial, lock = _make(parent)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _remove_if_dead(partial: Path) -> None:
    with contextlib.suppress(OSError):  # it lives, or others removed it
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(partial, ignore_errors=True)
        finally:
            os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that locks it until it is closed or the process ends."""
    while True:
        # Not by tempfile, whose folders only their owner can read.
        partial = parent / f"{_PREFIX}{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.exists():
                return partial, lock
            os.close(lock)  # another took it for a dead one before it was locked
