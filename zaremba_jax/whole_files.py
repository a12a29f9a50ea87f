"""Files that are written whole: a reader finds the old content or the new, never a part."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # ends the name of the file that becomes the target
NO_SPACE_LEFT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # why a file cannot be written whole


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file beside its target, and renames it once it is complete.

    A link stays, and what it leads to is written. Of processes that write one file at the same
    time, each waits for the one before.

    Raises:
      OSError: it cannot be written; the target is as it was.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(path.name + PARTIAL)
    with naming(path), _alone_at(partial) as file:
        file.write(content)
        file.flush()
        os.replace(partial, path)


@contextlib.contextmanager
def _alone_at(partial: Path) -> Iterator[BinaryIO]:
    """Opens a file, empty, that no other process writes in the block.

    Nothing but this handle writes it: over SMB, a lock keeps out all others, those of the same
    process too. On a file system without locks nobody waits.
    """
    while True:
        with partial.open("ab") as file:  # "wb" would empty what another is writing
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file.fileno(), partial):  # else who had it has renamed it meanwhile
                file.truncate(0)  # of what a killed process left
                yield file
                return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Tells with errors of the system what was being written or read; a full disk does not say.

    Raises:
      OSError: the block raised it; it names a file, and not the partial one of the path.
    """
    try:
        yield
    except OSError as error:
        names_another = error.filename not in (None, f"{path}{PARTIAL}")
        if error.errno is None or names_another:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
