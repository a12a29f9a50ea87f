"""Files of the scores of a text's parts."""

import json
from pathlib import Path
from typing import Any

from experiments.training.run_folder import write_text
from zaremba_jax.data.vocabulary import on_one_line


def write_records(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes JSON lines or, if the path ends in `.tsv`, tab-separated values with a header."""
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
    return "" if value is None else on_one_line(str(value))
