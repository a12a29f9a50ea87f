"""A trained model in one file: safetensors, with its configuration and vocabulary inside.

Reading a file runs nothing that is in it: it holds arrays, and JSON.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zaremba_jax.array_types import ModelParams
from zaremba_jax.config import Config, from_dict, to_dict
from zaremba_jax.model import init_params
from zaremba_jax.vocabulary import Unit, Vocabulary, check_unit

# One entry, since safetensors writes several in no certain order.
ENTRY = "zaremba_jax"
VERSION = 1
FOLDER_MODEL, FOLDER_CONFIG = "model.safetensors", "config.json"
FOLDER_VOCABULARY = "vocab.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model with all that is needed to use it."""

    params: ModelParams
    config: Config
    vocabulary: Vocabulary


def save_model(path: str | Path, model: Model) -> None:
    """Writes a model as one safetensors file, all of it or nothing.

    The arrays bear the names of their places in `ModelParams`, as `layers.0.bias`. The
    file's metadata have one entry, `zaremba_jax`: JSON of the format's version, the
    configuration as in `config.json`, and the vocabulary.

    Raises:
      ValueError: the arrays are not those of the configuration and the vocabulary.
    """
    arrays = named_arrays(model.params)
    _checked_structure(path, arrays, model.config, model.vocabulary)
    record = {
        "version": VERSION,
        "config": to_dict(model.config),
        "vocabulary": dataclasses.asdict(model.vocabulary),
    }
    content = save(arrays, metadata={ENTRY: json.dumps(record)})
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def load_model(path: str | Path) -> Model:
    """Reads what `save_model` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no safetensors file, cut off, of another program or a newer version
        of this one, or its arrays are not those that its configuration and vocabulary ask for.
    """
    arrays, metadata = read_safetensors(path)
    if ENTRY not in metadata:
        raise ValueError(
            f"{path}: holds no model of zaremba_jax; name a file that experiments.ptb or"
            " experiments.export wrote"
        )
    try:
        record = dict(json.loads(metadata[ENTRY]))
        version = record["version"]
        if version != VERSION:
            raise ValueError(f"version {version} of the format, {VERSION} is read here")
        config, vocabulary = from_dict(record["config"]), vocabulary_of(record["vocabulary"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: its description cannot be read ({error}); export the model again, with the"
            " version of zaremba_jax that is to read it"
        ) from None
    return assemble(path, arrays, config, vocabulary)


def save_folder(path: str | Path, model: Model) -> None:
    """Writes a model as a folder in the manner of Hugging Face's hub.

    `config.json` has the sizes and, under `settings`, the configuration; `vocab.json` the id
    of each word; `model.safetensors` is the file of `save_model`.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / FOLDER_MODEL, model)
    words, described = model.vocabulary.words, model.config.model
    config = {
        "model_type": ENTRY,
        "format_version": VERSION,
        "vocab_size": len(words),
        "hidden_size": described.hidden_size,
        "num_hidden_layers": described.layers,
        "tie_word_embeddings": described.tie_weights,
        "unit": model.vocabulary.unit,
        "settings": to_dict(model.config),
    }
    for name, content in (
        (FOLDER_CONFIG, json.dumps(config, indent=2)),
        (FOLDER_VOCABULARY, json.dumps(dict(zip(words, range(len(words)), strict=True)))),
    ):
        (folder / name).write_text(content + "\n", encoding="utf-8")


def load_folder(path: str | Path) -> Model:
    """Reads what `save_folder` wrote, of `model.safetensors` the arrays alone.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file cannot be read, or they do not go together.
    """
    folder = Path(path)
    try:
        record = _folder_record(folder)
        if record["format_version"] != VERSION:
            raise ValueError(f"format_version={record['format_version']}: {VERSION} is read here")
        config = from_dict(record["settings"])
        vocabulary = read_vocabulary(folder / FOLDER_VOCABULARY, record["unit"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: is no folder of a model that can be read ({error}); export the model again"
        ) from None
    arrays, _ = read_safetensors(folder / FOLDER_MODEL)
    return assemble(folder / FOLDER_MODEL, arrays, config, vocabulary)


def is_model_folder(path: str | Path) -> bool:
    """Whether the folder is one that `save_folder` wrote, of this version or another."""
    try:
        return bool(_folder_record(Path(path)))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder_record(folder: Path) -> dict[str, Any]:
    record = dict(json.loads((folder / FOLDER_CONFIG).read_text(encoding="utf-8")))
    if record["model_type"] != ENTRY:
        raise ValueError(f"model_type={record['model_type']}: is not {ENTRY}")
    return record


def read_vocabulary(path: str | Path, unit: Unit = "word") -> Vocabulary:
    """Reads a `vocab.json`: words with their ids, or a list of words in the order of theirs.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is neither, or the ids are not those from 0 on.
    """
    try:
        words = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(words, dict):
            if sorted(words.values()) != list(range(len(words))):
                raise ValueError(f"its ids are not 0 to {len(words) - 1}, each once")
            words = sorted(words, key=words.__getitem__)
        return vocabulary_of({"words": words, "unit": unit})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: is no vocabulary ({error}); give JSON of different words, with their ids or"
            " in the order of these"
        ) from None


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of any safetensors file by their names, and its metadata.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no safetensors file, is cut off, or has numbers that NumPy lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(
            f"{path}: is not a whole safetensors file ({error}); name another, or copy it again"
        ) from None


def vocabulary_of(record: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a record describes.

    Raises:
      ValueError: its words are no list of different words, or its unit is none.
    """
    words, unit = record["words"], record["unit"]
    check_unit(unit)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("the vocabulary is no list of words")
    if not words or len(set(words)) < len(words):
        raise ValueError("the vocabulary has no words, or one twice")
    return Vocabulary(tuple(words), unit)


def named_arrays(params: ModelParams) -> dict[str, np.ndarray]:
    """Every trained array by the name of its place, as in `layers.0.bias`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_name(path): np.ascontiguousarray(leaf) for path, leaf in leaves}


def assemble(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> Model:
    """The model of a configuration from its arrays by name.

    Raises:
      ValueError: an array is missing, too many, or of another shape or type than float32 or
        float64; the message starts with `source`.
    """
    like = _checked_structure(source, arrays, config, vocabulary)

    def read(path: Any, _: Any) -> jax.Array:
        array = arrays[_name(path)]
        return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))

    return Model(jax.tree_util.tree_map_with_path(read, like), config, vocabulary)


def _checked_structure(
    source: str | Path, arrays: Mapping[str, np.ndarray], config: Config, vocabulary: Vocabulary
) -> ModelParams:
    """The parameters' shapes; arguments and errors as of `assemble`."""
    make = functools.partial(init_params, config.model, len(vocabulary))
    like = jax.eval_shape(lambda: make(key=jax.random.key(0)))
    expected, _ = jax.tree_util.tree_flatten_with_path(like)
    wanted = {
        _name(path): [f"{dtype}{list(leaf.shape)}" for dtype in ("float32", "float64")]
        for path, leaf in expected
    }
    found = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
    differing = [
        f"{name} ({found.get(name, 'none')} there, {wanted.get(name, ['none'])[0]} asked for)"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) not in wanted.get(name, [])
    ]
    if differing:
        raise ValueError(
            f"{source}: its arrays are not those of its configuration and {len(vocabulary)} words:"
            f" {', '.join(differing)}; save the model with those that it was made with"
        )
    return like


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
