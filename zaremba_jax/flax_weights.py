"""Weights of Flax's recurrent cells, of `nnx` and of `linen`, as layers of this library.

The gates of an LSTM lie in another order there: i, f, g, o for f, i, o, u. A GRU fits
whose candidate has no second bias, behind the reset gate: `nnx.GRUCell`; and
`linen.GRUCell` as long as its bias `hn` is zero, as it starts and does not stay.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from zaremba_jax.array_types import CellName, LayerParams

# Its kind here, and its gates, by the letters of Flax, in the order of `array_types`.
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
    """The layer that computes what a cell of `flax.nnx` does in a `nnx.RNN`.

    Raises:
      ValueError: it is of another kind, has other nonlinearities, a bias that has no place
        here, or a first state that is not zeros.
    """
    kind, gates = _kind_of(cell)
    if isinstance(cell, nnx.LSTMCell):
        # f's input map is `if_`, since `if` is a word of Python.
        parts = {f"{side}{gate}": f"{side}{gate}" for side in "ih" for gate in gates} | {
            "if": "if_"
        }
        maps = {name: _affine(getattr(cell, attribute)) for name, attribute in parts.items()}
    else:
        order = ("i", "f", "g", "o") if kind == "lstm" else gates
        maps = {
            f"{side}{gate}": part
            for side in "ih"
            for gate, part in _split(order, _affine(getattr(cell, f"dense_{side}")))
        }
    return _layer(kind, gates, maps)


def linen_layer(cell: nn.RNNCellBase, params: Mapping[str, Any]) -> LayerParams:
    """The layer that computes what a cell of `flax.linen` does in a `nn.RNN`.

    Args:
      cell: which tells the kind.
      params: its parameters, partitioned or not; of `variables`, what a `nn.RNN` has under
        `params`, `cell`.

    Raises:
      ValueError: as of `nnx_layer`, these are no parameters of such a cell, or they are
        not known, as under `jax.jit`, where they have to be looked at.
    """
    kind, gates = _kind_of(cell)
    expected = {f"{side}{gate}" for side in "ih" for gate in gates}
    if params.keys() != expected:
        raise ValueError(
            f"parameters {', '.join(sorted(params))}: those of {type(cell).__name__} are"
            f" {', '.join(sorted(expected))}"
        )
    return _layer(kind, gates, nn.unbox(params))


def _kind_of(cell: Any) -> tuple[CellName, tuple[str, ...]]:
    name = type(cell).__name__
    if type(cell) not in _KINDS:
        fitting = ", ".join(dict.fromkeys(kind.__name__ for kind in _KINDS))
        raise ValueError(f"{name}: there is no such layer here; take one of {fitting}")
    usual = {"gate_fn": nnx.sigmoid, "activation_fn": nnx.tanh, "residual": False}
    for attribute, expected in usual.items():
        if (found := getattr(cell, attribute, expected)) is not expected:
            raise ValueError(f"{name}: its {attribute} is {found}; the layers here have {expected}")
    if cell.carry_init not in (None, nnx.initializers.zeros_init()):
        raise ValueError(
            f"{name}: starts from its own carry_init; the layers here start from zeros: take a cell"
            " without, and pass initial_carry"
        )
    return _KINDS[type(cell)]


def _affine(part: nnx.Linear) -> dict[str, jax.Array]:
    found = {"kernel": part.kernel, "bias": part.bias}
    return {name: x[...] for name, x in found.items() if x is not None}


def _split(
    gates: tuple[str, ...], affine: dict[str, jax.Array]
) -> Iterable[tuple[str, dict[str, jax.Array]]]:
    """A map to several gates side by side, as one of each."""
    parts = {name: jnp.split(x, len(gates), axis=-1) for name, x in affine.items()}
    return [
        (gate, {name: x[place] for name, x in parts.items()}) for place, gate in enumerate(gates)
    ]


def _is_nonzero(bias: jax.Array) -> bool:
    try:
        return bool(jnp.any(bias != 0))
    except jax.errors.ConcretizationTypeError:
        raise ValueError(
            "GRUCell: whether its bias hn is zero is not known under jax.jit; make the layer"
            " outside of it"
        ) from None


def _layer(kind: CellName, gates: tuple[str, ...], maps: Mapping[str, Any]) -> LayerParams:
    """`maps` has, as linen names them, those of the inputs, `ir`, and of h, `hr`, for a gate r."""
    if kind == "gru" and "bias" in maps["hn"] and _is_nonzero(maps["hn"]["bias"]):
        raise ValueError(
            "GRUCell: its candidate has a bias behind the reset gate, hn, that is not zero; the"
            " GRU here has one bias a gate: train nnx.GRUCell, which has one too, or keep hn at 0"
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
