"""When, how and from which source a run was trained, and the memory that took."""

import datetime
import functools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.training.environment import peak_device_memory, peak_host_memory


def provenance() -> dict[str, Any]:
    """What tells this process from others: its date, its command line, and the source's commit."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "git_commit": git_commit(Path(__file__)),
    }


def peak_memory() -> dict[str, int | None]:
    """The most memory that this process has held so far, on the host and on a device."""
    return {
        "peak_host_memory_bytes": peak_host_memory(),
        "peak_device_memory_bytes": peak_device_memory() or None,
    }


@functools.cache  # of the source that this process runs, whatever is committed meanwhile
def git_commit(source: Path) -> str | None:
    """The commit that has a source file, with `-dirty` if a file differs from it; else None.

    An installed package may lie within the repository of something else, which does not have it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(source.parent), *arguments]
        answer = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
        return answer.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None
