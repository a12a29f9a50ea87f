"""Files that a run writes: whole, or at their end; of several hosts, only the first writes."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaremba_jax.interop.model_file import save_model
from zaremba_jax.model import Model
from zaremba_jax.whole_files import naming, write_whole


def write_model(path: Path, model: Model) -> None:
    """Writes a trained model, atomically, to a folder that is there: a run's may have gone."""
    if jax.process_index() == 0:  # with several hosts, only the first writes
        save_model(path, model)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, atomically."""
    write_bytes(path, text.encode())


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays in NumPy's format, atomically."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a binary file, atomically."""
    if jax.process_index() == 0:  # with several hosts, only the first writes
        write_whole(path, content)


def append_bytes(path: Path, content: bytes) -> None:
    """Adds to the end of a binary file.

    Raises:
      OSError: it cannot be written; it may have a part.
    """
    if jax.process_index() == 0:
        with naming(path), path.open("ab") as file:
            file.write(content)
