"""The LSTM's loops over time as TPU kernels: W_h is read once per window and stays in VMEM.

A kernel's grid is a window's time steps. The block of W_h is the same at all of them, so it is
copied to VMEM once; the state, or its gradient, stays there from step to step; the data of each
time step are copied in and out during the computation.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from zaremba_jax.kernels.lstm import (
    TILE,
    TimeLoops,
    gate_gradients,
    outputs_and_final_cell,
    pad_loops,
    previous_states,
    sigmoid,
)
from zaremba_jax.ops.products import dot

_STREAMS = 8  # rows of a tile in VMEM
_MEMORY = 128 * 2**20  # VMEM of a v5e and a v6e, assumed where there is no TPU
_BLOCKS = 40  # float32 arrays [batch, hidden] that a step needs besides W_h; measured: 10 to 23


@functools.cache
def time_loops(interpret: bool = False) -> TimeLoops:
    """Both loops, for any sizes.

    Args:
      interpret: run the kernels as ordinary operations, on any machine.
    """
    forward = functools.partial(_forward, interpret=interpret)
    backward = functools.partial(_backward, interpret=interpret)
    return pad_loops(TimeLoops(forward, backward), _STREAMS)


def fits(batch: int, hidden: int, itemsize: int, memory: int | None = None) -> bool:
    """Whether W_h and everything else a time step needs fit in VMEM together.

    Args:
      batch: streams.
      hidden: units.
      itemsize: bytes per element of W_h.
      memory: bytes of VMEM; by default those of the local TPU, or 128 MiB if there is none.
    """
    return _needed(batch, hidden, itemsize) <= 0.9 * (_memory() if memory is None else memory)


def _memory() -> int:
    if jax.default_backend() != "tpu":
        return _MEMORY
    return pltpu.get_tpu_info().vmem_capacity_bytes


def _needed(batch: int, hidden: int, itemsize: int) -> int:
    streams, units = batch + -batch % _STREAMS, hidden + -hidden % TILE
    return 4 * units**2 * itemsize + _BLOCKS * 4 * streams * units


def _forward(projected, recurrent_weights, state, *, interpret):
    time, batch, gates = projected.shape
    hidden = gates // 4

    def kernel(projected, weights, first_hidden, first_cell, saved, hidden_now, cell_now):
        @pl.when(pl.program_id(0) == 0)
        def _():
            hidden_now[...] = first_hidden[...]
            cell_now[...] = first_cell[...]

        product = dot(hidden_now[...], weights[...])
        sums = projected[...] + product
        f, i, o = (sigmoid(sums[:, gate * hidden : (gate + 1) * hidden]) for gate in range(3))
        u = jnp.tanh(sums[:, 3 * hidden :])
        cell = f * cell_now[...] + i * u
        for index, part in enumerate((f, i, o, u, cell)):
            saved[:, index * hidden : (index + 1) * hidden] = part
        cell_now[...] = cell
        hidden_now[...] = (o * jnp.tanh(cell)).astype(hidden_now.dtype)

    first_hidden = state.hidden.astype(recurrent_weights.dtype)
    saved = pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[
            _of_step(batch, gates, lambda t: t),
            *map(_whole, (recurrent_weights, first_hidden, state.cell)),
        ],
        out_specs=_of_step(batch, 5 * hidden, lambda t: t),
        out_shape=jax.ShapeDtypeStruct((time, batch, 5 * hidden), projected.dtype),
        scratch_shapes=[_scratch(first_hidden), _scratch(state.cell)],
        compiler_params=_compiler_params(batch, recurrent_weights),
        interpret=interpret,
        name="lstm_forward",
    )(projected, recurrent_weights, first_hidden, state.cell)
    return *outputs_and_final_cell(saved), saved


def _backward(recurrent_weights, state, saved, d_outputs, d_final_cell, *, interpret):
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
        out_specs=[reversed_block(gates), _whole(d_final_cell)],
        out_shape=[
            jax.ShapeDtypeStruct((time, batch, gates), recurrent_weights.dtype),
            jax.ShapeDtypeStruct(d_final_cell.shape, d_final_cell.dtype),
        ],
        scratch_shapes=[pltpu.VMEM((batch, gates), recurrent_weights.dtype)],
        compiler_params=_compiler_params(batch, recurrent_weights),
        interpret=interpret,
        name="lstm_backward",
    )(recurrent_weights, d_final_cell, d_outputs, saved, previous_states(state.cell, cells))


def _of_step(batch: int, size: int, when: Any) -> pl.BlockSpec:
    return pl.BlockSpec((None, batch, size), lambda t: (when(t), 0, 0))


def _whole(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda t: (0,) * x.ndim, pipeline_mode=pl.Buffered(1))


def _scratch(x: jax.Array) -> Any:
    return pltpu.VMEM(x.shape, x.dtype)


def _compiler_params(batch: int, weights: jax.Array) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",),
        vmem_limit_bytes=_needed(batch, len(weights), weights.dtype.itemsize),
    )
