"""Files that a program writes where the user says: it replaces only what it wrote before."""

from collections.abc import Callable
from pathlib import Path

from zaremba_jax.errors import InputError


def refuse_to_replace(flag: str, path: Path, what: str, is_own: Callable[[Path], bool]) -> None:
    """Refuses a path of a flag where a file would be lost that the program did not write.

    An empty file, as `mktemp` makes, is no loss. `is_own` tells the program's files, which are
    `what`, from others.

    Raises:
      InputError: another file is there, or a folder.
    """
    if path.is_dir():
        raise InputError(f"--{flag}={path}: is a folder; name a file")
    if path.exists() and path.stat().st_size and not is_own(path):
        raise InputError(f"--{flag}={path}: exists and is not {what}; name another, or remove it")
