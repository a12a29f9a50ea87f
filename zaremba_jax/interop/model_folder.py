"""A trained model as a folder in the layout of the Hugging Face Hub."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaremba_jax.config import to_dict
from zaremba_jax.data.vocabulary_files import read_vocabulary
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_card import model_card
from zaremba_jax.interop.model_file import (
    ENTRY,
    VERSION,
    assemble,
    described_by,
    digest,
    model_bytes,
    named_arrays,
    read_safetensors,
)
from zaremba_jax.json_text import read_json_object
from zaremba_jax.model import Model
from zaremba_jax.presets import from_dict
from zaremba_jax.whole_files import write_whole

FOLDER_MODEL, FOLDER_CONFIG = "model.safetensors", "config.json"
FOLDER_VOCABULARY, FOLDER_CARD = "vocab.json", "README.md"


def save_folder(
    path: str | Path, model: Model, perplexities: Mapping[str, float] | None = None
) -> None:
    """Writes a model as a folder in the layout of the Hugging Face Hub.

    `config.json` has the sizes, under `settings` the configuration, `perplexities`, by the name of
    their text, and a hash of the arrays; `vocab.json` maps each word to its id; `model.safetensors`
    is the file that `save_model` writes; `README.md` is a model card, with the perplexities too.

    Raises:
      InputError: as for `save_model`.
      OSError: a file cannot be written.
    """
    folder, perplexities = Path(path), dict(perplexities or {})
    # Before anything is written: an earlier export is as it was if this model is refused.
    weights = model_bytes(folder / FOLDER_MODEL, model)
    folder.mkdir(parents=True, exist_ok=True)
    words, described = model.vocabulary.words, model.config.model
    ids = dict(zip(words, range(len(words)), strict=True))
    config = {
        "model_type": ENTRY,
        "format_version": VERSION,
        "vocab_size": len(words),
        "hidden_size": described.hidden_size,
        "num_hidden_layers": described.layers,
        "tie_word_embeddings": described.tie_weights,
        "unit": model.vocabulary.unit,
        "settings": to_dict(model.config),
        "perplexities": perplexities,
        "arrays_sha256": digest(named_arrays(model.params)),
    }
    for name, content in (
        (FOLDER_CONFIG, (json.dumps(config, indent=2) + "\n").encode()),
        (FOLDER_VOCABULARY, (json.dumps(ids) + "\n").encode()),
        (FOLDER_CARD, model_card(model, perplexities).encode()),
        (FOLDER_MODEL, weights),  # last: a folder without is an export too
    ):
        write_whole(folder / name, content)


def load_folder(path: str | Path) -> Model:
    """Reads what `save_folder` wrote.

    How the model is computed (`ComputeConfig`) may have been changed in `config.json`.

    Raises:
      MissingFileError: a file is missing.
      InputError: a file cannot be read, or the files do not match.
    """
    folder = Path(path)
    try:
        record = _folder_record(folder)
        if record["format_version"] != VERSION:
            raise InputError(f"format_version={record['format_version']}: must be {VERSION}")
        config = from_dict(record["settings"])
        vocabulary = read_vocabulary(folder / FOLDER_VOCABULARY, record["unit"])
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{error.filename}: no such file; give the path of a folder with {FOLDER_CONFIG},"
            f" {FOLDER_VOCABULARY} and {FOLDER_MODEL}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: cannot be read as a model folder ({error}); export the model again"
        ) from None
    arrays, metadata = read_safetensors(folder / FOLDER_MODEL)
    there, words = config, vocabulary
    if ENTRY in metadata:
        there, words = described_by(folder / FOLDER_MODEL, arrays, metadata[ENTRY])
    model = assemble(folder / FOLDER_MODEL, arrays, config, vocabulary)
    if words != vocabulary or dataclasses.replace(there, compute=config.compute) != config:
        raise InputError(f"{folder}: its files are not of one model; export the model again")
    if record.get("arrays_sha256") not in (None, digest(arrays)):  # earlier versions wrote none
        raise InputError(
            f"{folder / FOLDER_MODEL}: has other weights than {FOLDER_CONFIG} was written for;"
            " export the model again, or, if you changed them, remove arrays_sha256 there"
        )
    return model


def folder_perplexities(path: str | Path) -> dict[str, float]:
    """Those that `save_folder` was given.

    Raises:
      OSError, ValueError: the folder is not one of its folders.
    """
    record = _folder_record(Path(path))
    try:
        return {text: float(value) for text, value in record.get("perplexities", {}).items()}
    except (AttributeError, TypeError) as error:
        raise InputError(f"{path}: its perplexities are no numbers ({error})") from None


def is_model_folder(path: str | Path) -> bool:
    """Whether `save_folder` wrote the folder, in this format version or another."""
    try:
        return bool(_folder_record(Path(path)))
    except (OSError, ValueError):
        return False


def _folder_record(folder: Path) -> dict[str, Any]:
    record = read_json_object(folder / FOLDER_CONFIG)
    if (model_type := record.get("model_type")) != ENTRY:
        raise InputError(f"model_type={model_type}: is not {ENTRY}")
    return record
