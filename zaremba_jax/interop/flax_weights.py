"""Weights of Flax's recurrent cells, from `nnx` or `linen`, as layers of this library.

Flax orders the gates of an LSTM differently: i, f, g, o for f, i, o, u. A GRU can be
converted if its candidate has no second bias that the reset gate multiplies:
`nnx.GRUCell`, or `linen.GRUCell` as long as its bias `hn` is zero, which it is only
before training.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from zaremba_jax.array_types import CellName, LayerParams
from zaremba_jax.errors import InputError

# A cell's kind here, and its gates in the order of `array_types`, by Flax's letters.
_LSTM: tuple[CellName, tuple[str, ...]] = ("lstm", ("f", "i", "o", "g"))
_GRU: tuple[CellName, tuple[str, ...]] = ("gru", ("r", "z", "n"))
_TANH: tuple[CellName, tuple[str, ...]] = ("tanh", ("",))
_KINDS = {
    **dict.fromkeys((nnx.LSTMCell, nnx.OptimizedLSTMCell), _LSTM),
    **dict.fromkeys((nn.LSTMCell, nn.OptimizedLSTMCell), _LSTM),
    **dict.fromkeys((nnx.GRUCell, nn.GRUCell), _GRU),
    **dict.fromkeys((nnx.SimpleCell, nn.SimpleCell), _TANH),
}


def nnx_layer(cell: nnx.RNNCellBase) -> LayerParams:
    """The layer that computes what a `flax.nnx` cell does in an `nnx.RNN`.

    Raises:
      InputError: the cell is of another kind, has other nonlinearities or a bias without
        a counterpart here, or does not start from zeros.
    """
    kind, gates = _kind_of(cell)
    if isinstance(cell, nnx.LSTMCell):
        # f's input map is `if_`, since `if` is a Python keyword.
        names = [f"{side}{gate}" for side in "ih" for gate in gates]
        maps = {n: _affine(getattr(cell, "if_" if n == "if" else n)) for n in names}
    else:
        order = ("i", "f", "g", "o") if kind == "lstm" else gates
        maps = {
            f"{side}{gate}": part
            for side in "ih"
            for gate, part in _split(order, _affine(getattr(cell, f"dense_{side}")))
        }
    return _layer(kind, gates, maps)


def linen_layer(cell: nn.RNNCellBase, params: Mapping[str, Any]) -> LayerParams:
    """The layer that computes what a `flax.linen` cell does in an `nn.RNN`.

    Args:
      cell: tells the kind.
      params: its parameters, partitioned or not; for an `nn.RNN`,
        `variables["params"]["cell"]`.

    Raises:
      InputError: as for `nnx_layer`; or `params` are not those of such a cell, or have to
        be inspected and are unknown, as under `jax.jit`.
    """
    kind, gates = _kind_of(cell)
    expected = {f"{side}{gate}" for side in "ih" for gate in gates}
    if params.keys() != expected:
        raise InputError(
            f"parameters {', '.join(sorted(params))}: those of {type(cell).__name__} are"
            f" {', '.join(sorted(expected))}; give these alone, which an"
            ' nn.RNN has in variables["params"]["cell"]'
        )
    return _layer(kind, gates, nn.unbox(params))


def _kind_of(cell: Any) -> tuple[CellName, tuple[str, ...]]:
    name = type(cell).__name__
    if type(cell) not in _KINDS:
        fitting = ", ".join(dict.fromkeys(kind.__name__ for kind in _KINDS))
        raise InputError(f"{name}: there is no such layer here; use one of {fitting}")
    usual = {"gate_fn": nnx.sigmoid, "activation_fn": nnx.tanh, "residual": False}
    for attribute, expected in usual.items():
        if (value := getattr(cell, attribute, expected)) is not expected:
            raise InputError(f"{name}: its {attribute} is {value}; the layers here have {expected}")
    if cell.carry_init not in (None, nnx.initializers.zeros_init()):
        raise InputError(
            f"{name}: starts from its own carry_init; the layers here start from zeros: use a cell"
            " without it, and pass initial_carry"
        )
    return _KINDS[type(cell)]


def _affine(part: nnx.Linear) -> dict[str, jax.Array]:
    params = {"kernel": part.kernel, "bias": part.bias}
    return {name: x[...] for name, x in params.items() if x is not None}


def _split(
    gates: tuple[str, ...], affine: dict[str, jax.Array]
) -> Iterable[tuple[str, dict[str, jax.Array]]]:
    """Splits a map to several gates side by side into one map per gate."""
    parts = {name: jnp.split(x, len(gates), axis=-1) for name, x in affine.items()}
    return [
        (gate, {name: x[index] for name, x in parts.items()}) for index, gate in enumerate(gates)
    ]


def _is_nonzero(bias: jax.Array) -> bool:
    try:
        return bool(jnp.any(bias != 0))
    except jax.errors.ConcretizationTypeError:
        raise InputError(
            "GRUCell: whether its bias hn is zero is not known under jax.jit; make the layer"
            " outside it"
        ) from None


def _layer(kind: CellName, gates: tuple[str, ...], maps: Mapping[str, Any]) -> LayerParams:
    """`maps` has, by linen's names, the maps of the inputs, `ir`, and of h, `hr`, for a gate r."""
    if kind == "gru" and "bias" in maps["hn"] and _is_nonzero(maps["hn"]["bias"]):
        raise InputError(
            "GRUCell: its candidate's second bias, hn, is not zero; the GRU here has one bias per"
            " gate: train nnx.GRUCell, which has one too, or keep hn at 0"
        )
    biases = [
        sum(maps[f"{side}{gate}"]["bias"] for side in "ih" if "bias" in maps[f"{side}{gate}"])
        for gate in gates
    ]
    return LayerParams(
        input_weights=jnp.concatenate([maps[f"i{gate}"]["kernel"] for gate in gates], axis=-1),
        recurrent_weights=jnp.concatenate([maps[f"h{gate}"]["kernel"] for gate in gates], axis=-1),
        bias=jnp.concatenate(biases),
        cell=kind,
    )
