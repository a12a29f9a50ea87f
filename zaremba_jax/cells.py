"""The recurrent cells: one pure step of each, and the affine map of their inputs.

A layer's gates are sums of two products: `projected`, from the inputs, and
`recurrent`, from h[t-1]. A cell's equations turn both into the next state.

References:
  Cho et al. (2014), the GRU: https://arxiv.org/abs/1406.1078
  Elman (1990), the plain cell: https://doi.org/10.1207/s15516709cog1402_1
  Krueger et al. (2017), zoneout: https://arxiv.org/abs/1606.01305
  Semeniuta et al. (2016), masks on updates: https://arxiv.org/abs/1603.05118
  Zaremba et al. (2014), the LSTM: https://arxiv.org/abs/1409.2329
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zaremba_jax.array_types import (
    CellName,
    HiddenState,
    LayerParams,
    LayerState,
    LSTMState,
    RecurrentMasks,
)
from zaremba_jax.config import Precision
from zaremba_jax.ops.products import matmul

_NO_MASKS = RecurrentMasks()


def merge_biases(layer: LayerParams) -> LayerParams:
    """The same layer with a single bias, the sum of both if it has two."""
    if layer.second_bias is None:
        return layer
    return dataclasses.replace(layer, bias=layer.bias + layer.second_bias, second_bias=None)


def project_inputs(
    params: LayerParams, inputs: Float[Array, "*any features"], precision: Precision = "float32"
) -> Float[Array, "*any gates"]:
    """The part of every gate that does not depend on the past: `D(h[l-1]) @ W_x + b`.

    Takes any number of leading axes, so that one matrix product serves all time steps.
    """
    bias = jnp.expand_dims(merge_biases(params).bias, range(inputs.ndim - 1))
    return matmul(inputs, params.input_weights, precision) + bias


def step(
    params: LayerParams,
    projected: Float[Array, "batch gates"],
    state: LayerState,
    masks: RecurrentMasks = _NO_MASKS,
    precision: Precision = "float32",
) -> LayerState:
    """One time step of a layer.

    Args:
      params: the layer; its cell names the equations.
      projected: the inputs' part of the gates at this step, from `project_inputs`,
        with dropout already applied to the inputs.
      state: the state after the previous step.
      masks: the masks on the connections through time at this step, [batch, hidden]
        each. By default there are none, which is the paper's point.
      precision: of the operands of the matrix product.

    Returns:
      The state after this step.

    Raises:
      ValueError: there is a mask for something that this kind of cell does not have.
    """
    recurrent = matmul(drop_hidden(state, masks), params.recurrent_weights, precision)
    return advance(params.cell, projected, recurrent, state, masks)


def drop(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The operator D at one site; None drops nothing."""
    return x if mask is None else x * mask


def drop_hidden(state: LayerState, masks: RecurrentMasks) -> Float[Array, "*any hidden"]:
    """h[t-1] as it enters the gates."""
    return drop(state.hidden, masks.hidden)


def advance(
    cell: CellName,
    projected: Float[Array, "batch gates"],
    recurrent: Float[Array, "batch gates"],
    state: LayerState,
    masks: RecurrentMasks = _NO_MASKS,
) -> LayerState:
    """A step without its matrix product: the cell's equations, then zoneout.

    Zoneout (Krueger et al. 2017, section 3.2) keeps some units at their previous values;
    what the cell computes for the others does not depend on which units are kept.

    Raises:
      ValueError: as for `step`.
    """
    new = CELLS[cell].equations(projected, recurrent, state, masks.update)
    if masks.zoneout_hidden is not None:
        kept = _blend(state.hidden, new.hidden, masks.zoneout_hidden)
        new = dataclasses.replace(new, hidden=kept)
    if masks.zoneout_cell is not None:
        if not (isinstance(state, LSTMState) and isinstance(new, LSTMState)):
            raise ValueError(f"zoneout_cell: the {cell} cell has no cell state c; leave it out")
        new = dataclasses.replace(new, cell=_blend(state.cell, new.cell, masks.zoneout_cell))
    return new


def lstm(
    projected: Float[Array, "batch gates"],
    recurrent: Float[Array, "batch gates"],
    state: LSTMState,
    update_mask: Float[Array, "#batch #hidden"] | None = None,
) -> LSTMState:
    """The LSTM (Zaremba et al. 2014, section 3.1).

    With z = projected + recurrent split into four parts z_f, z_i, z_o, z_u:

        f = sigmoid(z_f)    o = sigmoid(z_o)    c[t] = f * c[t-1] + i * u
        i = sigmoid(z_i)    u = tanh(z_u)       h[t] = o * tanh(c[t])

    u is the paper's g. `update_mask` multiplies it (Semeniuta et al. 2016, equation 12).
    """
    f, i, o, u = lstm_gates(projected, recurrent)
    cell = f * state.cell + i * drop(u, update_mask)
    return LSTMState(hidden=o * jnp.tanh(cell), cell=cell)


def lstm_gates(
    projected: Float[Array, "*any gates"], recurrent: Float[Array, "*any gates"]
) -> list[Float[Array, "*any hidden"]]:
    """The gates f, i, o and u of the LSTM."""
    *sigmoids, update = jnp.split(projected + recurrent, 4, axis=-1)
    return [*map(jax.nn.sigmoid, sigmoids), jnp.tanh(update)]


def gru(
    projected: Float[Array, "batch gates"],
    recurrent: Float[Array, "batch gates"],
    state: HiddenState,
    update_mask: Float[Array, "#batch #hidden"] | None = None,
) -> HiddenState:
    """The gated recurrent unit (Cho et al. 2014), with the reset gate after the matrix product.

    With projected and recurrent split into three parts x and a, for r, z and n:

        r = sigmoid(x_r + a_r)    n = tanh(x_n + r * a_n)
        z = sigmoid(x_z + a_z)    h[t] = (1 - z) * n + z * h[t-1]

    The reset gate is where cuDNN and Flax have it, so that one product serves all gates;
    each gate has one bias, in x. `update_mask` multiplies n (Semeniuta et al. 2016,
    section 3.2).
    """
    _, z, n = gru_gates(projected, recurrent)
    return HiddenState(hidden=_blend(state.hidden, drop(n, update_mask), z))


def gru_gates(
    projected: Float[Array, "*any gates"], recurrent: Float[Array, "*any gates"]
) -> list[Float[Array, "*any hidden"]]:
    """The gates r, z and n of the GRU."""
    x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
    a_r, a_z, a_n = jnp.split(recurrent, 3, axis=-1)
    r = jax.nn.sigmoid(x_r + a_r)
    return [r, jax.nn.sigmoid(x_z + a_z), jnp.tanh(x_n + r * a_n)]


def tanh(
    projected: Float[Array, "batch gates"],
    recurrent: Float[Array, "batch gates"],
    state: HiddenState,
    update_mask: Float[Array, "#batch #hidden"] | None = None,
) -> HiddenState:
    """The plain recurrent cell (Elman 1990): h[t] = tanh(projected + recurrent).

    Raises:
      ValueError: there is an `update_mask`; this cell has no update to mask.
    """
    if update_mask is not None:
        raise ValueError("update: the tanh cell writes no update; leave its mask out")
    (hidden,) = tanh_gates(projected, recurrent)
    return HiddenState(hidden=hidden)


def tanh_gates(
    projected: Float[Array, "*any gates"], recurrent: Float[Array, "*any gates"]
) -> list[Float[Array, "*any hidden"]]:
    """h, the only gate of the tanh cell."""
    return [jnp.tanh(projected + recurrent)]


class Cell(NamedTuple):
    """The definition of a kind of cell."""

    gates: str  # one letter per gate, in their order on the axis; W_x and W_h have as many parts
    carries: str  # one letter per array of its state, h first
    state: Callable[..., LayerState]  # the class of its state
    activate: Callable[[jax.Array, jax.Array], list[jax.Array]]  # from both products to the gates
    # From both products, the state and the mask on the update to the next state.
    equations: Callable[[jax.Array, jax.Array, Any, jax.Array | None], LayerState]


CELLS: dict[CellName, Cell] = {
    "lstm": Cell("fiou", "hc", LSTMState, lstm_gates, lstm),
    "gru": Cell("rzn", "h", HiddenState, gru_gates, gru),
    "tanh": Cell("h", "h", HiddenState, tanh_gates, tanh),
}


def pack_state(state: LayerState) -> tuple[jax.Array, ...]:
    """The arrays of a layer's state in the order of its record: h, and for an LSTM c after it."""
    return tuple(jax.tree.leaves(state))


def unpack_state(cell: CellName, arrays: Iterable[jax.Array]) -> LayerState:
    """The state of a layer from the arrays that `pack_state` returns."""
    return CELLS[cell].state(*arrays)


def _blend(old: jax.Array, new: jax.Array, keep: jax.Array) -> jax.Array:
    return keep * old + (1 - keep) * new
