"""When two runs are the same run, and when two models are the same model.

A run is the same if all its settings are but those that only say when it ends, since no epoch
depends on how many are to come. Its checkpoints, which hold the settings in use, may also come
from a machine where another kernel was chosen.

A model is the same if everything is that decides how it is trained: of the settings, all but
the seed and those that only say how its numbers are computed.
"""

from collections.abc import Mapping
from typing import Any

from zaremba_jax.config import ComputeConfig, Config, completed, override, to_dict
from zaremba_jax.presets import PRESETS

_NOT_OF_THE_MODEL = ("seed", "kernel", "softmax_tokens")
_WHEN_IT_ENDS = ("epochs", "patience")
# As checkpoints record the settings that may differ.
_NOT_OF_A_CHECKPOINT = {"kernel": ComputeConfig().kernel} | dict.fromkeys(_WHEN_IT_ENDS, 0)


def differing_settings(
    saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """The settings that make two runs different ones, by name, each with both values.

    `saved` is as read from a file, of any version; `wanted` as from `to_dict`.
    """
    saved = completed(saved)
    return {
        name: (saved.get(name), wanted.get(name))
        for name in sorted(saved.keys() | wanted.keys())
        if name not in _WHEN_IT_ENDS and saved.get(name) != wanted.get(name)
    }


def checkpoint_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a checkpoint records them, with fixed values for those that may differ."""
    return {**settings, **_NOT_OF_A_CHECKPOINT}


def canonical_config(config: Config) -> Config:
    """The configuration with fixed values for its seed and for what does not change the model."""
    preset = to_dict(PRESETS[config.name])
    return override(config, **{name: preset[name] for name in _NOT_OF_THE_MODEL})


def same_model(config: Config, other: Config) -> bool:
    """Whether two configurations describe the same model, whatever their seeds."""
    return canonical_config(config) == canonical_config(other)


def is_of_the_paper(config: Config) -> bool:
    """Whether the model is that of its preset, in any precision: the paper names none."""
    preset = PRESETS[config.name]
    return same_model(override(config, precision=preset.compute.precision), preset)
