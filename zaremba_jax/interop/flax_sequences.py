"""A deep RNN over a batch of sequences of any lengths, in either layout and direction.

Does for this library's layers what `flax.nnx.RNN` does for one cell: the layouts and the
meaning of lengths, reversal and carry are the same.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.nnx.nn.recurrent import flip_sequences
from jax.sharding import AxisType, PartitionSpec, auto_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Num

from zaremba_jax.array_types import CellName, LayerParams, LayerState, RNNState
from zaremba_jax.cells import CELLS, pack_state, unpack_state
from zaremba_jax.config import ComputeConfig
from zaremba_jax.errors import InputError
from zaremba_jax.rnn import unroll_layer, zero_state

Carry = Any
Sizes = tuple[Any, ...]  # of axes; a program for arrays of any size has symbols for numbers
Lengths = Int[Array | np.ndarray, "*batch"] | Sequence[Any]
Drop = Callable[[jax.Array], jax.Array]


class SequenceOptions(NamedTuple):
    """The layout of a batch's arrays and the direction of reading, with Flax's names."""

    time_major: bool  # [time, *batch, features], else [*batch, time, features]
    return_carry: bool
    reverse: bool  # read each sequence from its end; padding stays after it
    keep_order: bool  # if reversed, turn the outputs back around


# A gate's preactivation that no weights outweigh: a power of two, which bfloat16 has exactly, far
# below the largest number, so that gradients times it stay finite.
_SATURATING = 2.0**100


def run_sequences(
    layers: tuple[LayerParams, ...],
    inputs: Num[Array, "*batch_and_time features"],
    carry: Carry | None,
    lengths: Lengths | None,
    *,
    drop: Drop,
    drop_output: bool,
    options: SequenceOptions,
    compute: ComputeConfig,
) -> Any:
    """Runs all layers over all time steps.

    Args:
      layers: the weights, bottom layer first. Half-precision weights, and the state, are
        float32 inside; if they are bfloat16, so are the operands of products.
      inputs: with any number of batch axes; cast to the dtype of the weights.
      carry: before the first step, as in Flax: (c, h) for an LSTM, h for the other cells,
        [*batch, hidden] each. Of several layers a tuple of these, bottom layer first; a single one
        may stand in such a tuple, too. The record of a layer's state is taken for its carry. None
        for zeros.
      lengths: the number of steps of each sequence; the rest is padding. None for all.
      drop: the operator D, called on each layer's input in turn, [time, batch, features]
        with all batch axes flattened into one.
      drop_output: whether to call `drop` on the last layer's output too.
      options: layout and direction.
      compute: precision and kernel.

    Returns:
      The outputs, in the layout of the inputs; with `return_carry`, the pair of carry and
      outputs. The carry, bare if there is one layer, is that after each sequence's last step, or
      the initial one if the sequence is empty. Outputs over the padding are meaningless: the
      layers read on as in Flax or, if the carry is returned, read zeros there. All results have
      the dtype of the weights.

    Raises:
      InputError: the shapes do not fit each other.
    """
    time_axis = 0 if options.time_major else inputs.ndim - 2
    lengths = None if lengths is None else jnp.asarray(lengths)
    batch_shape = _batch_shape(layers, inputs, lengths, time_axis)
    batch, param_dtype = math.prod(batch_shape), layers[0].bias.dtype
    dtype = at_least_float32(param_dtype)
    layers = jax.tree.map(lambda weights: weights.astype(dtype), layers)
    if param_dtype == jnp.bfloat16:
        compute = dataclasses.replace(compute, precision="bfloat16")
    lengths = None if lengths is None else lengths.reshape(batch).astype(int)

    def turn(x: jax.Array) -> jax.Array:
        return flip_sequences(x, lengths, num_batch_dims=1, time_major=True)

    x = jnp.moveaxis(inputs, time_axis, 0)
    x = x.reshape(x.shape[0], batch, x.shape[-1]).astype(dtype)
    x = turn(x) if options.reverse else x
    start = jax.tree.map(  # the size of a batch may be a symbol
        lambda x: jnp.broadcast_to(x, (batch, x.shape[1])), zero_state(layers, batch_size=1)
    )
    if carry is not None:
        parts = zip(layers, _of_each_layer(carry, len(layers)), strict=True)
        start = tuple(_state(layer, part, batch_shape, dtype) for layer, part in parts)
    x, ends = _run_layers(
        layers, x, start, lengths if options.return_carry else None, drop, compute
    )
    x = drop(x) if drop_output else x
    x = turn(x) if options.reverse and options.keep_order else x
    outputs = jnp.moveaxis(x.reshape(x.shape[0], *batch_shape, x.shape[-1]), 0, time_axis)
    ends = tuple(_carry(end, batch_shape) for end in ends)
    results = (ends if len(layers) > 1 else ends[0], outputs) if options.return_carry else outputs
    return jax.tree.map(lambda x: x.astype(param_dtype), results)


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """float32 in place of a half-precision type; others unchanged."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _run_layers(
    layers: tuple[LayerParams, ...],
    inputs: jax.Array,
    start: RNNState,
    lengths: jax.Array | None,
    drop: Drop,
    compute: ComputeConfig,
) -> tuple[jax.Array, list[LayerState]]:
    """The last layer's outputs and each layer's end: of every sequence if there are lengths."""
    x, ends = inputs, []
    for layer, state in zip(layers, start, strict=True):
        read = drop(x)
        if x.shape[0] == 0:  # no steps
            x, end = jnp.zeros((0, *state.hidden.shape), x.dtype), state
        else:
            unroll = _divided_by_compiler(functools.partial(_unroll, compute=compute), read, state)
            x, end = unroll(layer, read, state, lengths)
        ends.append(end)
    return x, ends


def _divided_by_compiler(
    unroll: Callable[..., Any], inputs: jax.Array, state: LayerState
) -> Callable[..., Any]:
    """`unroll`, within which the compiler divides arrays among devices, even on explicit axes.

    A kernel's loops would have to state the division of everything they carry. The batch of the
    results is divided as that of the inputs; other axes are not.
    """
    sharding = jax.typeof(inputs).sharding
    if AxisType.Explicit not in (sharding.mesh.axis_types or ()):
        return unroll
    batch = sharding.spec[1] if len(sharding.spec) > 1 else None
    of_state = jax.tree.map(lambda _: PartitionSpec(batch, None), state)
    return auto_axes(unroll, out_sharding=(PartitionSpec(None, batch, None), of_state))


def _unroll(
    layer: LayerParams,
    inputs: jax.Array,
    state: LayerState,
    lengths: jax.Array | None,
    compute: ComputeConfig,
) -> tuple[jax.Array, LayerState]:
    """`unroll_layer`; given lengths, with the state after each sequence's own last step.

    Kernels return h of every step, but c only of the last. So an extra feature that marks
    the padding holds an LSTM's f at 1 and its i at 0 there, and c stays as it is.
    """
    if lengths is None:
        return unroll_layer(layer, inputs, state, compute=compute)
    ended = jnp.arange(inputs.shape[0], dtype=lengths.dtype)[:, None] >= lengths[None]
    # Padding may hold anything: NaN would spread, even from where nothing reads it.
    inputs = jnp.where(ended[..., None], 0, inputs)
    if layer.cell == "lstm":
        hidden = len(layer.recurrent_weights)
        held = jnp.repeat(jnp.array([_SATURATING, -_SATURATING, 0, 0], inputs.dtype), hidden)
        weights = jnp.concatenate([layer.input_weights, held[None]])
        layer = dataclasses.replace(layer, input_weights=weights)
        inputs = jnp.concatenate([inputs, ended[..., None].astype(inputs.dtype)], axis=-1)
    outputs, end = unroll_layer(layer, inputs, state, compute=compute)
    hiddens = jnp.concatenate([state.hidden[None], outputs])
    return outputs, dataclasses.replace(end, hidden=hiddens[lengths, jnp.arange(lengths.shape[0])])


def _batch_shape(
    layers: tuple[LayerParams, ...],
    inputs: jax.Array,
    lengths: jax.Array | None,
    time_axis: int,
) -> Sizes:
    """The axes of the batch."""
    features = len(layers[0].input_weights)
    if inputs.ndim < 2 or inputs.shape[-1] != features:
        raise InputError(
            f"inputs of shape {inputs.shape}: need a time axis and a last axis of {features}"
            " features"
        )
    shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 : -1]
    if lengths is not None and lengths.shape != shape:
        raise InputError(
            f"seq_lengths of shape {lengths.shape}: give one per sequence, in shape {shape}"
        )
    return shape


def _of_each_layer(carry: Carry, layers: int) -> tuple[Any, ...]:
    """The carry of each layer; that of a single one may be bare."""
    parts = tuple(carry) if isinstance(carry, tuple | list) else (carry,)
    if layers == 1:
        return parts if len(parts) == 1 else (carry,)
    if len(parts) != layers:
        raise InputError(f"a carry of {len(parts)} parts: give a tuple of {layers}, one per layer")
    return parts


def zero_carry(
    cell: CellName, layers: int, features: int, input_shape: Sizes, dtype: DTypeLike
) -> Carry:
    """The carry of zeros for inputs [*batch, features], as `run_sequences` takes and returns it."""
    zeros = jnp.zeros((*input_shape[:-1], features), dtype)
    names = CELLS[cell].carries
    carries = ((zeros,) * len(names) if len(names) > 1 else zeros,) * layers
    return carries if layers > 1 else carries[0]


def _state(layer: LayerParams, carry: Any, batch_shape: Sizes, dtype: DTypeLike) -> LayerState:
    """The state of a layer from Flax's carry, which has c first, or from a state's record."""
    is_state = isinstance(carry, LayerState)
    parts = pack_state(carry)[::-1] if is_state else jax.tree.leaves(carry)
    shapes = [jnp.shape(part) for part in parts]
    shape = (*batch_shape, len(layer.recurrent_weights))
    names = CELLS[layer.cell].carries[::-1]
    if shapes != [shape] * len(names):
        raise InputError(
            f"a carry with arrays of shapes {shapes} for the cell {layer.cell}: give"
            f" {' and '.join(names)}, of shape {shape} each"
        )
    flat = [jnp.asarray(part, dtype).reshape(math.prod(batch_shape), shape[-1]) for part in parts]
    return unpack_state(layer.cell, flat[::-1])


def _carry(state: LayerState, batch_shape: Sizes) -> Any:
    """Flax's carry: c and h of an LSTM, h alone of other cells."""
    parts = [x.reshape(*batch_shape, x.shape[-1]) for x in pack_state(state)[::-1]]
    return tuple(parts) if len(parts) > 1 else parts[0]
