"""A trained model in one file: safetensors, with its configuration and vocabulary inside.

Reading a file executes nothing: it holds only arrays and JSON.
"""

import dataclasses
import hashlib
import json
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
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.vocabulary_files import read_vocabulary, vocabulary_from_dict
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_card import model_card
from zaremba_jax.json_text import parse_json_object
from zaremba_jax.model import Model, param_shapes
from zaremba_jax.presets import from_dict
from zaremba_jax.whole_files import write_whole

# A single entry of a file's metadata, since safetensors writes several in no fixed order.
ENTRY = "zaremba_jax"
VERSION = 1
FOLDER_MODEL, FOLDER_CONFIG = "model.safetensors", "config.json"
FOLDER_VOCABULARY, FOLDER_CARD = "vocab.json", "README.md"


def save_model(path: str | Path, model: Model) -> None:
    """Writes a model as one safetensors file, all of it or nothing.

    The arrays are named by their paths in `ModelParams`, such as `layers.0.bias`. The
    file's metadata has one entry, `zaremba_jax`: JSON with the format version, the
    configuration as in `config.json`, the vocabulary, and a hash of all of it.

    Raises:
      InputError: the arrays do not match the configuration and the vocabulary.
    """
    arrays = named_arrays(model.params)
    _checked_structure(path, arrays, model.config, model.vocabulary)
    record = {
        "version": VERSION,
        "config": to_dict(model.config),
        "vocabulary": dataclasses.asdict(model.vocabulary),
    }
    record["sha256"] = _digest(arrays, json.loads(json.dumps(record)))
    write_whole(path, save(arrays, metadata={ENTRY: json.dumps(record)}))


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
            f"{path}: holds no model of zaremba_jax; name a file that experiments.ptb or"
            " experiments.export wrote"
        )
    return assemble(path, arrays, *_described(path, arrays, metadata[ENTRY]))


def _described(
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
    if not is_whole or written not in (None, _digest(arrays, record)):
        raise InputError(
            f"{path}: was damaged after it was written; copy it again from where it was"
        )
    return described


def _digest(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> str:
    """A hash of arrays and their description, as read from JSON."""
    shapes = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    digest = hashlib.sha256(json.dumps([shapes, record], sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def save_folder(
    path: str | Path, model: Model, perplexities: Mapping[str, float] | None = None
) -> None:
    """Writes a model as a folder in the layout of the Hugging Face Hub.

    `config.json` has the sizes, under `settings` the configuration, and `perplexities`, by the name
    of their text; `vocab.json` maps each word to its id; `model.safetensors` is the file that
    `save_model` writes; `README.md` is a model card, with the perplexities too.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / FOLDER_MODEL, model)
    words, described = model.vocabulary.words, model.config.model
    perplexities = dict(perplexities or {})
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
    }
    for name, content in (
        (FOLDER_CONFIG, json.dumps(config, indent=2) + "\n"),
        (FOLDER_VOCABULARY, json.dumps(dict(zip(words, range(len(words)), strict=True))) + "\n"),
        (FOLDER_CARD, model_card(model, perplexities)),
    ):
        write_whole(folder / name, content.encode())


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
    described = config, vocabulary
    if ENTRY in metadata:
        described = _described(folder / FOLDER_MODEL, arrays, metadata[ENTRY])
    model = assemble(folder / FOLDER_MODEL, arrays, config, vocabulary)
    there, words = described
    if words != vocabulary or dataclasses.replace(there, compute=config.compute) != config:
        raise InputError(f"{folder}: its files are not of one model; export the model again")
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
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder_record(folder: Path) -> dict[str, Any]:
    record = parse_json_object((folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
    if record["model_type"] != ENTRY:
        raise InputError(f"model_type={record['model_type']}: is not {ENTRY}")
    return record


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
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}


def assemble(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> Model:
    """Makes the model of a configuration from its arrays by name.

    Raises:
      InputError: an array is missing, unexpected, of another shape, not finite, or neither float32
        nor float64; the message starts with `source`.
    """
    like = _checked_structure(source, arrays, config, vocabulary)
    if infinite := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise InputError(
            f"{source}: {infinite[0]} has numbers that are not finite; name a model whose training"
            " did not diverge"
        )

    def read(path: Any, _: Any) -> jax.Array:
        array = arrays[_name(path)]
        return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))

    return Model(jax.tree_util.tree_map_with_path(read, like), config, vocabulary)


def _checked_structure(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> ModelParams:
    """The parameters' shapes; arguments and errors as for `assemble`."""
    sizes = {
        name: getattr(config.model, name) for name in ("layers", "hidden_size", "embedding_size")
    }
    largest = max([len(arrays), *(length for array in arrays.values() for length in array.shape)])
    if max(sizes.values()) > largest:  # not to be tried: it may ask for millions of layers
        raise InputError(
            f"{source}: its arrays do not match its configuration of"
            f" {', '.join(f'{name}={size}' for name, size in sizes.items())}; save the model with"
            " the one it was made with"
        )
    like = param_shapes(config.model, len(vocabulary))
    expected, _ = jax.tree_util.tree_flatten_with_path(like)
    wanted = {
        _name(path): [f"{dtype}{list(leaf.shape)}" for dtype in ("float32", "float64")]
        for path, leaf in expected
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
            f" {', '.join(differing)}; save the model with the ones it was made with"
        )
    return like


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
