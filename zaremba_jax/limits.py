"""Settings with limits: fields of records that check themselves on construction.

A setting carries its own description and limits, from which programs build their command line.
"""

import dataclasses
import functools
import operator
import types
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from zaremba_jax.errors import InputError

_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_LARGEST_INT = int(np.iinfo(np.int32).max)
_LIMITS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "below": operator.lt,
    "at_most": operator.le,
}


def setting(description: str, *, default: Any = dataclasses.MISSING, **limits: float) -> Any:
    """The field of a `Validated` record; its arguments are as in `Setting`."""
    metadata = {"description": description, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


class Setting(NamedTuple):
    """What a setting may be.

    Attributes:
      kind: `bool`, `int`, `float` or `str`.
      description: what it decides.
      choices: all values of a setting that is one of a few strings; empty for any other.
      limits: bounds of a number, by `at_least`, `above`, `below` and `at_most`.
      default: what it is unless given, `dataclasses.MISSING` if it has to be; where it is None,
        None may be given too.
      section: of a configuration, as `config.settings` tells it: `model`, `regularizers`,
        `train` or `compute`; empty for what is in none.
    """

    kind: type
    description: str
    choices: tuple[str, ...]
    limits: dict[str, float]
    default: Any
    section: str = ""


@functools.cache
def settings_of(record: type[Any]) -> dict[str, Setting]:
    """The settings of a record by name; its other fields are left out."""
    hints = get_type_hints(record)

    def read(field: dataclasses.Field) -> Setting:
        kind = hints[field.name]
        if get_origin(kind) is types.UnionType:
            kind = get_args(kind)[0]  # `float` of `float | None`
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        kind = str if choices else kind
        return Setting(kind, choices=choices, default=field.default, **field.metadata)

    return {field.name: read(field) for field in dataclasses.fields(record) if field.metadata}


class Validated:
    """Checks every setting of a record against its type and limits on construction."""

    def __post_init__(self):
        for name, declared in settings_of(type(self)).items():
            value = getattr(self, name)
            if value is not None or declared.default is not None:
                _check(name, value, declared)


def _check(name: str, value: Any, declared: Setting) -> None:
    kind, limits = declared.kind, declared.limits
    if declared.choices:
        if value not in declared.choices:
            raise InputError(f"{name}={value!r}: must be one of {', '.join(declared.choices)}")
        return
    accepted = (int, float) if kind is float else (kind,)  # a whole number may stand for a float
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, accepted):
        raise InputError(f"{name}={value!r}: must be of type {kind.__name__}")
    if kind in (str, bool):
        return
    if kind is int and not {"below", "at_most"} & limits.keys():
        limits = {**limits, "at_most": _LARGEST_INT}
    check_limits(name, value, rounded=kind is float, **limits)


def whole_number(name: str, value: int, **limits: float) -> int:
    """The number, Python's or NumPy's, as one of Python's, which no sum overflows.

    Raises:
      InputError: it is not whole, or outside its limits.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name}={value!r}: must be a whole number")
    check_limits(name, value, rounded=False, **limits)
    return int(value)


def check_limits(name: str, value: float, *, rounded: bool = False, **limits: float) -> None:
    """Refuses a number that is outside its limits, or not finite in float32.

    Args:
      name: what the error calls it.
      value: the number.
      rounded: whether to compare the nearest float32, because that is what is computed with.
      limits: bounds by `at_least`, `above`, `below` and `at_most`.

    Raises:
      InputError: it is refused.
    """
    within = abs(value) <= _LARGEST_FLOAT
    bounds = [] if within else ["finite in float32"]
    compared = np.float32(value) if within and rounded else value
    for limit, bound in limits.items():
        bounds.append(f"{limit.replace('_', ' ')} {bound}")
        within = within and _LIMITS[limit](compared, bound)
    if not within:
        raise InputError(f"{name}={value}: must be {' and '.join(bounds)}")
