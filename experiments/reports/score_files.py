"""Files of the scores of a text's parts."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.training.written_files import write_text

_SPECIAL = re.compile('["\t\n\r]')  # csv.writer leaves a lone \r unquoted


def write_records(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes JSON lines or, if the path ends in `.tsv`, tab-separated values with a header.

    Those are quoted as readers of CSV expect (RFC 4180, with tabs for commas).
    """
    if path.suffix == ".tsv":
        rows = [list(entries[0]), *(list(record.values()) for record in entries)]
        lines = ["\t".join(map(_cell, row)) for row in rows]
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in entries]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


def is_of_scores(path: Path) -> bool:
    """Whether `write_records` wrote a file."""
    with path.open("rb") as file:
        first = file.readline()
    return first.startswith((b"line\t", b'{"line": ')) and b"log_probability" in first
