"""The LSTM's loops over time as TPU kernels: W_h is read once per window and stays in VMEM.

A kernel's grid is a window's time steps. The block of W_h is the same at all of them, so it is
copied to VMEM once; the state, or its gradient, stays there from step to step; the data of each
time step are copied in and out during the computation.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zaremba_jax.array_types import LSTMState
from zaremba_jax.kernels.lstm import (
    TimeLoops,
    gate_gradients,
    outputs_and_final_cell,
    previous_states,
)
from zaremba_jax.kernels.tiles import UNITS_PER_TILE, pad_recurrent_weights, pad_rows, pad_units
from zaremba_jax.ops.products import dot

_STREAMS_PER_TILE = 8  # rows of a tile in VMEM
_USUAL_VMEM = 128 * 2**20  # bytes, of a v5e and a v6e; assumed where there is no TPU
_USABLE_VMEM = 0.9  # of it, for W_h and the rest of a time step
_ARRAYS_OF_A_STEP = 40  # float32 [batch, hidden], besides W_h; measured: 10 to 23


@functools.cache
def time_loops(interpret: bool = False) -> TimeLoops:
    """Both loops, for any sizes: the large products outside of them need no padding.

    Args:
      interpret: run the kernels as ordinary operations, on any machine.
    """

    def pad(x: jax.Array, hidden: int) -> jax.Array:
        return pad_rows(pad_units(x, hidden), _STREAMS_PER_TILE)

    def forward(projected, recurrent_weights, state):
        batch, hidden = state.hidden.shape
        saved = _forward(
            pad(projected, hidden),
            pad_recurrent_weights(recurrent_weights),
            jax.tree.map(lambda x: pad(x, hidden), state),
            interpret,
        )
        outputs, final_cell = outputs_and_final_cell(saved)
        return outputs[:, :batch, :hidden], final_cell[:batch, :hidden], saved

    def backward(recurrent_weights, state, saved, d_outputs, d_final_cell):
        batch, hidden = state.hidden.shape
        d_gates, d_cell = _backward(
            pad_recurrent_weights(recurrent_weights),
            pad(state.cell, hidden),
            saved,
            pad(d_outputs, hidden),
            pad(d_final_cell, hidden),
            interpret,
        )
        blocks = d_gates.reshape(*d_gates.shape[:-1], 4, -1)[:, :batch, :, :hidden]
        return blocks.reshape(*blocks.shape[:-2], -1), d_cell[:batch, :hidden]

    return TimeLoops(forward, backward)


def fits(batch: int, hidden: int, itemsize: int, memory: int | None = None) -> bool:
    """Whether W_h and everything else that a time step needs fit in VMEM together.

    Args:
      batch: streams.
      hidden: units.
      itemsize: bytes of an element of W_h.
      memory: bytes of VMEM; by default those of the local TPU, or 128 MiB if there is none.
    """
    if memory is None:
        on_tpu = jax.default_backend() == "tpu"
        memory = pltpu.get_tpu_info().vmem_capacity_bytes if on_tpu else _USUAL_VMEM
    return _needed_vmem(batch, hidden, itemsize) <= _USABLE_VMEM * memory


def _needed_vmem(batch: int, hidden: int, itemsize: int) -> int:
    streams, units = batch + -batch % _STREAMS_PER_TILE, hidden + -hidden % UNITS_PER_TILE
    return 4 * units**2 * itemsize + _ARRAYS_OF_A_STEP * 4 * streams * units


def _sigmoid(x: jax.Array) -> jax.Array:
    """The sigmoid through tanh, for which a TPU has an instruction."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _forward(
    projected: Float[Array, "time batch gates"],
    recurrent_weights: Float[Array, "hidden gates"],
    state: LSTMState,
    interpret: bool,
) -> Float[Array, "time batch gates_and_cell"]:
    """f, i, o, u and c of every step."""
    time, batch, gates = projected.shape
    hidden = gates // 4

    def kernel(projected, weights, first_hidden, first_cell, saved, hidden_now, cell_now):
        @pl.when(pl.program_id(0) == 0)
        def _():
            hidden_now[...] = first_hidden[...]
            cell_now[...] = first_cell[...]

        product = dot(hidden_now[...], weights[...])
        sums = projected[...] + product
        f, i, o = (_sigmoid(sums[:, gate * hidden : (gate + 1) * hidden]) for gate in range(3))
        u = jnp.tanh(sums[:, 3 * hidden :])
        cell = f * cell_now[...] + i * u
        for index, part in enumerate((f, i, o, u, cell)):
            saved[:, index * hidden : (index + 1) * hidden] = part
        cell_now[...] = cell
        hidden_now[...] = (o * jnp.tanh(cell)).astype(hidden_now.dtype)

    first_hidden = state.hidden.astype(recurrent_weights.dtype)
    return pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[
            _of_step(batch, gates, lambda t: t),
            *map(_whole, (recurrent_weights, first_hidden, state.cell)),
        ],
        out_specs=_of_step(batch, 5 * hidden, lambda t: t),
        out_shape=_shape_like(projected, (time, batch, 5 * hidden), projected.dtype),
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype) for x in (first_hidden, state.cell)],
        compiler_params=_compiler_params(batch, recurrent_weights),
        interpret=interpret,
        name="lstm_forward",
    )(projected, recurrent_weights, first_hidden, state.cell)


def _backward(
    recurrent_weights: Float[Array, "hidden gates"],
    first_cell: Float[Array, "batch hidden"],
    saved: Float[Array, "time batch gates_and_cell"],
    d_outputs: Float[Array, "time batch hidden"],
    d_final_cell: Float[Array, "batch hidden"],
    interpret: bool,
) -> tuple[Float[Array, "time batch gates"], Float[Array, "batch hidden"]]:
    """The gradients of the gates of every step, as operands of products, and of `first_cell`."""
    time, batch, hidden = d_outputs.shape
    gates = 4 * hidden

    def kernel(weights, d_final_cell, d_output, saved, previous_cell, d_gates, d_cell, d_gates_now):
        @pl.when(pl.program_id(0) == 0)
        def _():
            d_gates_now[...] = jnp.zeros_like(d_gates_now)
            d_cell[...] = d_final_cell[...]

        product = dot(d_gates_now[...], weights[...], contract=1)
        saved_now = [saved[:, index * hidden : (index + 1) * hidden] for index in range(5)]
        parts, d_previous = gate_gradients(
            product + d_output[...], d_cell[...], [*saved_now, previous_cell[...]]
        )
        for gate, part in enumerate(parts):
            d_gates_now[:, gate * hidden : (gate + 1) * hidden] = part.astype(d_gates_now.dtype)
        d_gates[...] = d_gates_now[...]
        d_cell[...] = d_previous

    reversed_block = functools.partial(_of_step, batch, when=lambda t: time - 1 - t)
    *_, cells = jnp.split(saved, 5, axis=-1)
    return pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[
            _whole(recurrent_weights),
            _whole(d_final_cell),
            *(reversed_block(size) for size in (hidden, 5 * hidden, hidden)),
        ],
        out_specs=(reversed_block(gates), _whole(d_final_cell)),
        out_shape=(
            _shape_like(saved, (time, batch, gates), recurrent_weights.dtype),
            _shape_like(saved, d_final_cell.shape, d_final_cell.dtype),
        ),
        scratch_shapes=[pltpu.VMEM((batch, gates), recurrent_weights.dtype)],
        compiler_params=_compiler_params(batch, recurrent_weights),
        interpret=interpret,
        name="lstm_backward",
    )(recurrent_weights, d_final_cell, d_outputs, saved, previous_states(first_cell, cells))


def _shape_like(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Of a result that varies over the axes of a mesh over which `x` does."""
    aval: Any = jax.typeof(x)
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=aval.mat)


def _of_step(batch: int, size: int, when: Callable[[Any], Any]) -> pl.BlockSpec:
    """The block [batch, size] of time step `when(t)`, at step t of the grid."""
    return pl.BlockSpec((None, batch, size), lambda t: (when(t), 0, 0))


def _whole(x: jax.Array) -> pl.BlockSpec:
    """All of `x` at every step of the grid, copied to VMEM once."""
    return pl.BlockSpec(x.shape, lambda t: (0,) * x.ndim, pipeline_mode=pl.Buffered(1))


def _compiler_params(batch: int, weights: jax.Array) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",),
        vmem_limit_bytes=_needed_vmem(batch, len(weights), weights.dtype.itemsize),
    )
