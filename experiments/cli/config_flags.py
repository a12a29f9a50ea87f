"""A flag for each setting of the configuration, with its choices and limits."""

from collections.abc import Mapping
from typing import Any

from absl import flags
from absl.flags import FLAGS

from experiments.cli.help import flag_group
from zaremba_jax.config import Config, override, settings
from zaremba_jax.limits import Setting
from zaremba_jax.presets import PRESETS

# The settings that flags give; fingerprints follow from files that other flags name.
_FLAGS = {
    name: setting
    for name, setting in settings().items()
    if name != "name" and (setting.choices or setting.kind is not str)
}

flags.disclaim_key_flags()  # --help lists them among the flags of the program

TEXT, TRAINING, COMPUTATION = "text", "training", "computation"
_GROUPS = {
    "": TEXT,
    "model": "model",
    "regularizers": "regularizers",
    "train": TRAINING,
    "compute": COMPUTATION,
}


def define_config_flags() -> None:
    """Defines `--config`, and a flag for each setting, which overrides the preset's value."""
    with flag_group("preset"):
        flags.DEFINE_enum("config", "quick", list(PRESETS), "the paper's models, quick, or awd")
    for name, setting in _FLAGS.items():
        with flag_group(TRAINING if name == "seed" else _GROUPS[setting.section]):
            _define_setting(name, setting)


def _define_setting(name: str, setting: Setting) -> None:
    """Defines the flag of a setting, with its choices or limits.

    absl knows inclusive limits only. The others are told by `--help`, and checked by the
    configuration.
    """
    limits = dict(setting.limits)
    if setting.kind is int and "below" in limits:
        limits["at_most"] = limits.pop("below") - 1
    bounds: dict[str, Any] = {
        "lower_bound": limits.pop("at_least", None),
        "upper_bound": limits.pop("at_most", None),
    }
    strict = [f"{limit} {bound:g}" for limit, bound in limits.items()]
    told = "; ".join([setting.description, *strict])
    if setting.choices:
        flags.DEFINE_enum(name, None, setting.choices, told)
    elif setting.kind is int:
        flags.DEFINE_integer(name, None, told, **bounds)
    elif setting.kind is float:
        flags.DEFINE_float(name, None, told, **bounds)
    else:
        flags.DEFINE_bool(name, None, told)


def config_from_flags(
    base: Mapping[str, float] | None = None,
) -> tuple[Config, dict[str, int | float | str | None]]:
    """The preset, with `base` in place of its own values, under the flags' overrides; and those."""
    changes = changes_from_flags()
    return override(PRESETS[FLAGS.config], **{**(base or {}), **changes}), changes


def changes_from_flags() -> dict[str, int | float | str | None]:
    """The settings given by flags, by name."""
    values = {name: FLAGS[name].value for name in _FLAGS}
    return {name: value for name, value in values.items() if value is not None}
