"""The trained model that a run goes on from: `--init_from`."""

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np
from absl.flags import FLAGS

from experiments.cli.config_flags import TRAINING
from experiments.cli.flag_kinds import define_path
from experiments.cli.help import flag_group
from experiments.cli.trained_models import load, parts, single_model
from zaremba_jax.config import Config, ModelConfig, override
from zaremba_jax.data.encoding import Encoding
from zaremba_jax.data.text_files import Piece, content_hash
from zaremba_jax.errors import InputError
from zaremba_jax.model import Model, param_shapes

_SIZES = (
    *("cell", "layers", "hidden_size", "embedding_size", "output_size"),
    *("second_bias", "tie_weights"),
)

with flag_group(TRAINING):
    define_path(
        "init_from", None, "trained model to go on from: a run's folder or a .safetensors file"
    )


def with_initial_model(config: Config, changes: dict[str, int | float | str | None]) -> Config:
    """The configuration with the fingerprint of the model that `--init_from` names, if it does.

    `changes` are the settings given by flags. Refuses flags that do not go together.
    """
    path = FLAGS.init_from
    if path is None:
        return config
    limits = {"vocab_size", "min_count"} & changes.keys()
    if limits or FLAGS.vocabulary is not None:
        raise InputError(
            f"--{', --'.join(sorted(limits) or ['vocabulary'])}: --init_from brings the vocabulary"
            " of its model; leave one of the two out"
        )
    return override(config, init_from=_fingerprint(single_model([path], "init_from")))


def _fingerprint(path: Path) -> str:
    """Tells models apart by their content, which may change under the same path."""
    hashes = "".join(content_hash(Piece(part)) for part in parts(path))
    return hashlib.sha256(hashes.encode()).hexdigest()[:16]


def initial_model(config: Config) -> Model | None:
    """The model that `--init_from` names, if it does.

    Raises:
      InputError: it has other sizes than the configuration, cannot read its text, or is no longer
        the model of the configuration.
    """
    path = FLAGS.init_from
    if path is None:
        return None
    source = single_model([path], "init_from")
    model = load(source)
    if _fingerprint(source) != config.init_from:
        raise InputError(f"--init_from={path}: changed while it was read; give the command again")
    try:
        _check_sizes(model.config.model, config.model)
        Encoding(config.unit, vocabulary=model.vocabulary)
    except InputError as error:
        raise InputError(f"--init_from={path}: {error}") from None
    # On the host, from where every process puts them on its devices.
    return dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))


def _check_sizes(given: ModelConfig, wanted: ModelConfig) -> None:
    if param_shapes(given, 1) == param_shapes(wanted, 1):
        return
    differing = {
        name: (getattr(given, name), getattr(wanted, name))
        for name in _SIZES
        if getattr(given, name) != getattr(wanted, name)
    }
    listed = ", ".join(
        f"{name} ({there} there, {here} here)" for name, (there, here) in differing.items()
    )
    remedy = " ".join(f"--{name}={there}" for name, (there, _) in differing.items())
    raise InputError(
        f"its model has another shape: {listed}; give {remedy}, or a preset that has them"
    )
