"""The records of a run's epochs as a table that a spreadsheet opens: `metrics.csv`."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.training.written_files import append_bytes, write_bytes


class MetricsTable:
    """Adds a row for each epoch, at a cost that does not grow with them."""

    def __init__(self, path: Path, history: list[dict[str, Any]]):
        """Writes the epochs so far; `history` has each later one before it is added."""
        self._path, self._history = path, history
        self._write()

    def _write(self) -> None:
        rows = list(map(_cells, self._history))
        self._columns = {name: name for row in rows for name in row}
        write_bytes(self._path, self._lines([self._columns, *rows] if rows else []))

    def add(self, record: dict[str, Any]) -> None:
        """Adds the last epoch; errors as for `append_bytes`."""
        row = _cells(record)
        if row.keys() <= self._columns.keys():
            append_bytes(self._path, self._lines([row]))
        else:  # the first one, or one in which rates begin to differ
            self._write()

    def _lines(self, rows: Iterable[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, list(self._columns), lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _cells(record: dict[str, Any]) -> dict[str, Any]:
    """A column for each figure, and for each item of a list, numbered from 0; None is empty."""
    cells = {}
    for name, value in record.items():
        if isinstance(value, list):
            cells |= {f"{name}_{index}": item for index, item in enumerate(value)}
        else:
            cells[name] = value
    return cells
