"""A trained model in one file: safetensors, with its configuration and vocabulary inside.

Reading a file executes nothing: it holds only arrays and JSON.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zaremba_jax.array_types import ModelParams
from zaremba_jax.config import Config, to_dict
from zaremba_jax.data.vocabulary import Vocabulary, listed
from zaremba_jax.data.vocabulary_files import vocabulary_from_dict
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.json_text import parse_json_object
from zaremba_jax.model import Model, named_leaves, param_shapes
from zaremba_jax.presets import from_dict
from zaremba_jax.whole_files import write_whole

# A single entry of a file's metadata, since safetensors writes several in no fixed order.
ENTRY = "zaremba_jax"
VERSION = 1


def save_model(path: str | Path, model: Model) -> None:
    """Writes a model as one safetensors file, all of it or nothing.

    The arrays are named by their paths in `ModelParams`, such as `layers.0.bias`. The
    file's metadata has one entry, `zaremba_jax`: JSON with the format version, the
    configuration as in `config.json`, the vocabulary, and a hash of all of it.

    Raises:
      InputError: the arrays are not finite or do not match the configuration and the vocabulary, or
        the vocabulary is one that `load_model` refuses, such as one with a word twice.
      OSError: the file cannot be written.
    """
    write_whole(path, model_bytes(path, model))


def model_bytes(path: str | Path, model: Model) -> bytes:
    """The content of the file that `save_model` writes; arguments and errors as there."""
    arrays = named_arrays(model.params)
    checked_structure(path, arrays, model.config, model.vocabulary)
    described = {
        "version": VERSION,
        "config": to_dict(model.config),
        "vocabulary": dataclasses.asdict(model.vocabulary),
    }
    record = json.loads(json.dumps(described))  # as it will be read
    try:
        vocabulary_from_dict(record["vocabulary"])
    except InputError as error:
        raise InputError(
            f"{path}: could not be read again ({error}); give the model another vocabulary"
        ) from None
    record["sha256"] = digest(arrays, record)
    return save(arrays, metadata={ENTRY: json.dumps(record)})


def load_model(path: str | Path) -> Model:
    """Reads what `save_model` wrote.

    Raises:
      MissingFileError: there is no such file.
      InputError: it is not a complete safetensors file, was damaged, comes from another program
        or format version, or its arrays are not finite or do not match its configuration and
        vocabulary.
    """
    arrays, metadata = read_safetensors(path)
    if ENTRY not in metadata:
        raise InputError(
            f"{path}: holds no model of zaremba_jax; name one that a run or an export wrote"
        )
    return assemble(path, arrays, *described_by(path, arrays, metadata[ENTRY]))


def described_by(
    path: str | Path, arrays: Mapping[str, np.ndarray], text: str
) -> tuple[Config, Vocabulary]:
    """What a file's description says; those of the first versions have no hash to check it by.

    Raises:
      InputError: it cannot be read, is of another version, or it or an array was damaged.
    """
    try:
        record = parse_json_object(text)
        version, written = record["version"], record.pop("sha256", None)
        if version != VERSION:
            raise InputError(f"format version {version}, but only {VERSION} is supported")
        described = from_dict(record["config"]), vocabulary_from_dict(record["vocabulary"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: its description cannot be read ({error}); export the model again with this"
            " version of zaremba_jax"
        ) from None
    is_whole = record.keys() == {"version", "config", "vocabulary"}
    if not is_whole or written not in (None, digest(arrays, record)):
        raise InputError(
            f"{path}: was damaged after it was written; copy it again from where it was"
        )
    return described


def digest(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any] = {}) -> str:
    """A hash of arrays and their description, as read from JSON."""
    shapes = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    hashed = hashlib.sha256(json.dumps([shapes, record], sort_keys=True).encode())
    for name in sorted(arrays):
        hashed.update(np.ascontiguousarray(arrays[name]).data)
    return hashed.hexdigest()


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of any safetensors file by name, and its metadata.

    Raises:
      MissingFileError: there is no such file.
      InputError: it is not a safetensors file, is truncated, or has a type that NumPy lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: is not a whole safetensors file ({error}); name another, copy it again, or"
            " save its numbers as float32"
        ) from None


def named_arrays(params: ModelParams) -> dict[str, np.ndarray]:
    """Every trained array by its path, such as `layers.0.bias`."""
    return {name: np.ascontiguousarray(leaf) for name, leaf in named_leaves(params).items()}


def assemble(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> Model:
    """Makes the model of a configuration from its arrays by name.

    Raises:
      InputError: an array is missing, unexpected, of another shape, not finite, or neither float32
        nor float64; the message starts with `source`.
    """
    like = checked_structure(source, arrays, config, vocabulary)
    leaves = [
        jnp.asarray(arrays[name], jax.dtypes.canonicalize_dtype(arrays[name].dtype))
        for name in named_leaves(like)
    ]
    return Model(jax.tree.unflatten(jax.tree.structure(like), leaves), config, vocabulary)


def checked_structure(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> ModelParams:
    """The parameters' shapes; arguments and errors as for `assemble`."""
    like = param_shapes(config.model, len(vocabulary))
    wanted = {
        name: [f"{dtype}{list(leaf.shape)}" for dtype in ("float32", "float64")]
        for name, leaf in named_leaves(like).items()
    }
    actual = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
    differing = [
        f"{name} ({actual.get(name, 'none')} there, {wanted.get(name, ['none'])[0]} expected)"
        for name in sorted(actual.keys() | wanted.keys())
        if actual.get(name) not in wanted.get(name, [])
    ]
    if differing:
        raise InputError(
            f"{source}: its arrays do not match its configuration and {len(vocabulary)} words:"
            f" {listed(Counter(differing))}; save the model with the ones it was made with"
        )
    if infinite := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(
            f"{source}: {infinite[0]} has numbers that are not finite; take a model whose training"
            " did not diverge"
        )
    return like
