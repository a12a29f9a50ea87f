"""JSON from files that may be damaged or hostile."""

import json
from pathlib import Path
from typing import Any

from zaremba_jax.errors import InputError


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
      ValueError: it is no JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError("its brackets are nested too deeply") from None


def parse_json_object(text: str) -> dict[str, Any]:
    """What a JSON text says that is an object.

    Raises:
      ValueError: as for `parse_json`, or it is something else.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise InputError("it is no JSON object")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """What a file of such a text says.

    Raises:
      OSError: it cannot be read.
      ValueError: as for `parse_json_object`.
    """
    return parse_json_object(path.read_text(encoding="utf-8"))
