"""The records of a run's epochs on disk, a line each, at a cost that does not grow with them.

`metrics.jsonl` and `metrics.csv` are for people, a copy of the former lies among the checkpoints,
and a checkpoint has no more of it than its extent. A killed run may leave lines that no checkpoint
counts, or half of one. They are gone when the run is taken up again, which writes its files anew.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from experiments.training.metrics_table import MetricsTable
from experiments.training.run_folder import Workdir
from experiments.training.written_files import append_bytes, write_bytes
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import parse_json_object
from zaremba_jax.whole_files import naming

Records = list[dict[str, Any]]


def line_of(record: Mapping[str, Any]) -> bytes:
    """The line of an epoch."""
    return (json.dumps(record) + "\n").encode()


def read_lines(content: bytes) -> Records:
    """The records of all whole lines; a run that is killed or still writing may leave a part."""
    whole, _, _ = content.rpartition(b"\n")
    return [parse_json_object(line) for line in whole.decode().splitlines()]


@dataclasses.dataclass(frozen=True)
class Extent:
    """How many bytes a history has, and their checksum."""

    size: int = 0
    crc32: int = 0

    def with_lines(self, lines: bytes) -> "Extent":
        """The extent with these lines after it."""
        return Extent(self.size + len(lines), zlib.crc32(lines, self.crc32))


def read_history(workdir: Workdir, kept: Records | Mapping[str, int]) -> Records:
    """The history that a checkpoint keeps: by its extent, or whole in those of early versions.

    Raises:
      InputError: no file has it any more.
    """
    if isinstance(kept, list):
        return kept
    extent = Extent(**kept)
    for path in workdir.histories:
        content = path.read_bytes()[: extent.size] if path.exists() else b""
        if Extent().with_lines(content) == extent:
            return read_lines(content)
    metrics, copy = workdir.histories
    raise InputError(
        f"{metrics}: lacks epochs that the checkpoints count, and so does its copy, {copy}; put one"
        f" of them back, or remove {workdir.checkpoints} to start over"
    )


class EpochFiles:
    """Adds the line of each epoch to the files that hold the history."""

    def __init__(self, workdir: Workdir, history: Records):
        """Writes the epochs so far, and no others; `history` has each later one before `add`."""
        self._paths = workdir.histories
        workdir.checkpoints.mkdir(exist_ok=True)
        for path in self._paths:
            write_bytes(path, b"".join(map(line_of, history)))
        self._table = MetricsTable(workdir.metrics_table, history)

    def add(self, record: dict[str, Any]) -> None:
        """Adds an epoch.

        Raises:
          OSError: it cannot be written.
        """
        for path in self._paths:
            append_bytes(path, line_of(record))
        self._table.add(record)


def sync_history(workdir: Workdir) -> None:
    """Has the system put the copy's lines on the disk, before a checkpoint counts on them."""
    _, copy = workdir.histories
    if jax.process_index() == 0:
        with naming(copy), copy.open("rb") as file:
            os.fsync(file.fileno())
