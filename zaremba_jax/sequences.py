"""A deep RNN over a batch of sequences: of any lengths, in either layout and direction.

What `flax.nnx.RNN` makes of one cell, for layers of this library: the same layouts,
the same meaning of lengths, of reversal and of the carry.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.nnx.nn.recurrent import flip_sequences
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import HiddenState, LayerParams, LayerState, LSTMState
from zaremba_jax.cells import CELLS
from zaremba_jax.config import ComputeConfig
from zaremba_jax.rnn import unroll_layer, zero_state

Carry = tuple[Any, ...]
Lengths = Int[Array | np.ndarray, "*batch"] | Sequence[Any]
Drop = Callable[[jax.Array], jax.Array]


class Order(NamedTuple):
    """How a batch lies in its arrays and which way it is read; the names are Flax's."""

    time_major: bool = False  # [time, *batch, features], else [*batch, time, features]
    return_carry: bool = False
    reverse: bool = False  # read from the end of each sequence, padding stays behind it
    keep_order: bool = False  # turn the outputs around again then

    def but(self, **changes: bool | None) -> "Order":
        """The same, but for what is not None."""
        return self._replace(**{name: x for name, x in changes.items() if x is not None})


_AS_IT_STANDS = Order()
_SHUT = 1e4  # a gate's sum, larger than what weights add to it and within every type


def run_sequences(
    layers: tuple[LayerParams, ...],
    inputs: Float[Array, "*batch_and_time features"],
    carry: Carry | None = None,
    lengths: Lengths | None = None,
    *,
    drop: Drop = lambda x: x,
    drop_output: bool = False,
    order: Order = _AS_IT_STANDS,
    compute: ComputeConfig = ComputeConfig(),
) -> Any:
    """Runs all layers over all time steps.

    Args:
      layers: the weights, bottom layer first. Of half precision, they and the state are
        float32 in here, and bfloat16 the operands of products of bfloat16.
      inputs: with any number of axes of the batch; converted to the type of the weights.
      carry: before the first step, Flax's of each layer, bottom layer first: (c, h) of an
        LSTM, h of another cell, [*batch, hidden]; None: zeros.
      lengths: steps of each sequence; what comes after them is padding. None: all.
      drop: the operator D, called on each layer's input in turn, [time, batch, features]
        with all axes of the batch in one.
      drop_output: whether it is called on the last layer's output too.
      order: of the arrays.
      compute: precision and kernel.

    Returns:
      The outputs, in the layout of the inputs; with `return_carry`, the carry and they.
      The carry is that after the last step of each sequence, where there is none the
      carry before. Outputs over the padding mean nothing; they go on as in Flax, but where
      the carry is asked for, which takes the padding for zeros. All have the type of the
      weights.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    time_axis = 0 if order.time_major else inputs.ndim - 2
    lengths = None if lengths is None else jnp.asarray(lengths)
    batch_shape = _batch_shape(layers, inputs, carry, lengths, time_axis)
    batch, given = math.prod(batch_shape), layers[0].bias.dtype
    dtype = at_least_float32(given)
    layers = jax.tree.map(lambda weights: weights.astype(dtype), layers)
    if given == jnp.bfloat16:
        compute = dataclasses.replace(compute, precision="bfloat16")
    lengths = None if lengths is None else lengths.reshape(batch).astype(int)

    def turn(x: jax.Array) -> jax.Array:
        return flip_sequences(x, lengths, num_batch_dims=1, time_major=True)

    x = jnp.moveaxis(inputs, time_axis, 0)
    x = x.reshape(len(x), batch, x.shape[-1]).astype(dtype)
    x = turn(x) if order.reverse else x
    start = zero_state(layers, batch)
    if carry is not None:
        start = tuple(
            _state(layer, part, batch_shape, dtype)
            for layer, part in zip(layers, carry, strict=True)
        )
    ends = []
    for layer, state in zip(layers, start, strict=True):
        read = drop(x)
        if order.return_carry and lengths is not None:
            x, end = _unroll_to_ends(layer, read, state, lengths, compute)
        else:
            x, end = unroll_layer(layer, read, state, compute=compute)
        ends.append(_carry(end, batch_shape))
    x = drop(x) if drop_output else x
    x = turn(x) if order.reverse and order.keep_order else x
    outputs = jnp.moveaxis(x.reshape(len(x), *batch_shape, x.shape[-1]), 0, time_axis)
    results = (tuple(ends), outputs) if order.return_carry else outputs
    return jax.tree.map(lambda x: x.astype(given), results)


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """float32 instead of a type of half precision, others as they are."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _unroll_to_ends(
    layer: LayerParams,
    inputs: jax.Array,
    state: LayerState,
    lengths: jax.Array,
    compute: ComputeConfig,
) -> tuple[jax.Array, LayerState]:
    """`unroll_layer`, and the state after each sequence's own last step.

    A kernel gives h of every step, but c of the last one alone. So a feature that tells
    the padding holds an LSTM's f at 1 and its i at 0 there, and c stays.
    """
    ended = jnp.arange(len(inputs), dtype=lengths.dtype)[:, None] >= lengths[None]
    inputs = jnp.where(ended[..., None], 0, inputs)  # 1e5 would open a gate, NaN would spread
    if layer.cell == "lstm":
        hidden = len(layer.recurrent_weights)
        held = jnp.repeat(jnp.array([_SHUT, -_SHUT, 0, 0], inputs.dtype), hidden)
        weights = jnp.concatenate([layer.input_weights, held[None]])
        layer = dataclasses.replace(layer, input_weights=weights)
        inputs = jnp.concatenate([inputs, ended[..., None].astype(inputs.dtype)], axis=-1)
    outputs, end = unroll_layer(layer, inputs, state, compute=compute)
    every = jnp.concatenate([state.hidden[None], outputs])
    return outputs, dataclasses.replace(end, hidden=every[lengths, jnp.arange(len(lengths))])


def _batch_shape(
    layers: tuple[LayerParams, ...],
    inputs: jax.Array,
    carry: Carry | None,
    lengths: jax.Array | None,
    time_axis: int,
) -> tuple[int, ...]:
    """The axes of the batch."""
    features = len(layers[0].input_weights)
    if inputs.ndim < 2 or inputs.shape[-1] != features or not inputs.shape[time_axis]:
        raise ValueError(
            f"inputs of shape {inputs.shape}: need an axis of at least one time step and, last,"
            f" {features} features"
        )
    shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 : -1]
    if lengths is not None and lengths.shape != shape:
        raise ValueError(
            f"seq_lengths of shape {lengths.shape}: give one of each sequence, {shape}"
        )
    if carry is not None and len(carry) != len(layers):
        raise ValueError(
            f"a carry of {len(carry)} parts: give a tuple of one for each of {len(layers)} layers"
        )
    return shape


def _state(
    layer: LayerParams, carry: Any, batch_shape: tuple[int, ...], dtype: DTypeLike
) -> LayerState:
    parts = [carry.cell, carry.hidden] if isinstance(carry, LSTMState) else jax.tree.leaves(carry)
    found = [jnp.shape(part) for part in parts]
    shape = (*batch_shape, len(layer.recurrent_weights))
    names = ("c", "h") if CELLS[layer.cell].state is LSTMState else ("h",)
    if found != [shape] * len(names):
        raise ValueError(
            f"a carry with arrays of the shapes {found} for a layer of {layer.cell}: give"
            f" {' and '.join(names)}, {shape} each"
        )
    parts = [jnp.asarray(part, dtype).reshape(math.prod(batch_shape), shape[-1]) for part in parts]
    return HiddenState(*parts) if len(parts) == 1 else LSTMState(hidden=parts[1], cell=parts[0])


def _carry(state: LayerState, batch_shape: tuple[int, ...]) -> Any:
    hidden = state.hidden.reshape(*batch_shape, state.hidden.shape[-1])
    return (state.cell.reshape(hidden.shape), hidden) if isinstance(state, LSTMState) else hidden
