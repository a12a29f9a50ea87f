"""Files that a program writes where the user says: it replaces only what it wrote before."""

import os
from collections.abc import Callable
from pathlib import Path

from zaremba_jax.errors import InputError


def refuse_to_replace(flag: str, path: Path, what: str, is_own: Callable[[Path], bool]) -> None:
    """Refuses a path of a flag where a file would be lost that the program did not write.

    So is one where no file can be written: the results of long work would have no place.
    An empty file, as `mktemp` makes, is no loss. `is_own` tells the program's files, which are
    `what`, from others.

    Raises:
      InputError: another file is there, or a folder, device or pipe, or nothing can be written.
    """
    # Even if it is redirected to a file.
    is_stream = path.absolute().parent in (Path("/dev"), Path("/dev/fd"))
    if path.exists() and (is_stream or not path.is_file()):
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise InputError(f"--{flag}={path}: is {kind}; name a file")
    target = Path(os.path.realpath(path))  # a link stays, and what it leads to is written
    if path.is_symlink():
        nearest = target.parent
    else:
        # A link that leads nowhere is found too, and refused.
        nearest = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if target.is_symlink() or not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise InputError(f"--{flag}={path}: nothing can be written in {nearest}; name another")
    if path.exists() and path.stat().st_size and not is_own(path):
        raise InputError(f"--{flag}={path}: exists and is not {what}; name another")
