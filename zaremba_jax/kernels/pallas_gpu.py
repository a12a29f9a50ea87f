"""The LSTM's loops over time for NVIDIA: one kernel per time step, products and gates together.

Each program of the kernel handles a tile of units and streams. Forward, it computes the products
for their four gates and applies the gates' functions; backward, the product that is the gradient
of their h, and the gradients of their gates. The arrays of all time steps are updated in place,
each step in its own slot, so that the loop carries nothing else.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from zaremba_jax.kernels.lstm import TimeLoops, gate_gradients, pad_loops, scan_unroll, sigmoid
from zaremba_jax.ops.products import dot

# Per program: 1536 units make 96 programs, for 108 to 132 multiprocessors.
_UNITS = 16
_STREAMS = 16  # rows of a tensor core's smallest product
# Bytes that a program reads of each row at a time, with three such reads in its shared memory:
# 144 KiB for a whole batch of 32, of the 163 KiB that an A100's multiprocessor has.
_FORWARD_BYTES, _BACKWARD_BYTES = 512, 1024
_WARPS, _STAGES = 4, 3


@functools.cache
def time_loops(interpret: bool = False) -> TimeLoops:
    """Both loops, for any sizes.

    Args:
      interpret: run the kernels as ordinary operations, on any machine.
    """
    forward = functools.partial(_forward, interpret=interpret)
    backward = functools.partial(_backward, interpret=interpret)
    return pad_loops(TimeLoops(forward, backward), _STREAMS)


def _forward(projected, recurrent_weights, state, *, interpret):
    time, batch, gates = projected.shape
    hidden = gates // 4
    depth = math.gcd(hidden, _FORWARD_BYTES // recurrent_weights.dtype.itemsize)

    def kernel(step, projected, weights, *refs):
        hiddens, gates, cells = refs[3:]  # the results; before them the arguments they replace
        t, (streams, units) = step[...], _tile(batch)

        def add(block, sums):
            part = pl.ds(block * depth, depth)
            factor = hiddens[t, streams, part]
            return tuple(
                total + dot(factor, weights[gate, units, part], contract=1)
                for gate, total in enumerate(sums)
            )

        start = tuple(projected[t, streams, gate, units] for gate in range(4))
        *sums, sum_u = jax.lax.fori_loop(0, hidden // depth, add, start)
        f, i, o = map(sigmoid, sums)
        u = jnp.tanh(sum_u)
        for gate, value in enumerate((f, i, o, u)):
            gates[t, streams, gate, units] = value
        cell = f * cells[t, streams, units] + i * u
        cells[t + 1, streams, units] = cell
        hiddens[t + 1, streams, units] = (o * jnp.tanh(cell)).astype(hiddens.dtype)

    # W_h transposed once per window, so that a program reads along rows, not down columns.
    weights = recurrent_weights.reshape(hidden, 4, hidden).transpose(1, 2, 0)
    projected = projected.reshape(time, batch, 4, hidden)
    results = (
        _slots(state.hidden.astype(weights.dtype), time),
        jnp.zeros_like(projected),
        _slots(state.cell, time),
    )
    call = _in_place(kernel, 3, results, _programs(batch, hidden), interpret, "lstm_forward")
    _, gates, cells = jax.lax.fori_loop(
        0,
        time,
        lambda t, results: call(t, projected, weights, *results),
        results,
        unroll=scan_unroll(time),
    )
    return gates[:, :, 2] * jnp.tanh(cells[1:]), cells[-1], (gates, cells)


def _backward(recurrent_weights, state, saved, d_outputs, d_final_cell, *, interpret):
    gates, cells = saved
    time, batch, hidden = d_outputs.shape
    depth = math.gcd(4 * hidden, _BACKWARD_BYTES // recurrent_weights.dtype.itemsize)

    def kernel(done, weights, d_outputs, gates, cells, *refs):
        d_gates, d_cell = refs[2:]
        t, (streams, units) = time - 1 - done[...], _tile(batch)

        def add(block, total):
            part = pl.ds(block * depth, depth)
            return total + dot(d_gates[t + 1, streams, part], weights[units, part], contract=1)

        d_hidden = jax.lax.fori_loop(0, 4 * hidden // depth, add, d_outputs[t, streams, units])
        saved_now = [gates[t, streams, gate, units] for gate in range(4)]
        saved_now += [cells[slot, streams, units] for slot in (t + 1, t)]
        parts, d_previous = gate_gradients(d_hidden, d_cell[streams, units], saved_now)
        for gate, value in enumerate(parts):
            columns = pl.ds(gate * hidden + units.start, _UNITS)
            d_gates[t, streams, columns] = value.astype(d_gates.dtype)
        d_cell[streams, units] = d_previous

    # The slot after the last step holds the zeros that the loop starts from.
    d_gates = jnp.zeros((time + 1, batch, 4 * hidden), recurrent_weights.dtype)
    results = d_gates, d_final_cell
    call = _in_place(kernel, 5, results, _programs(batch, hidden), interpret, "lstm_backward")
    d_gates, d_cell = jax.lax.fori_loop(
        0,
        time,
        lambda done, results: call(done, recurrent_weights, d_outputs, gates, cells, *results),
        results,
        unroll=scan_unroll(time),
    )
    return d_gates[:-1], d_cell


def _in_place(
    kernel: Any, inputs: int, results: Any, programs: int, interpret: bool, name: str
) -> Any:
    """A call of `programs` programs that replace the arguments after the first `inputs`."""
    # Imported here because jax has deprecated it and nothing else needs it.
    from jax.experimental.pallas import triton

    return pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results),
        input_output_aliases={inputs + i: i for i in range(len(results))},
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name=name,
    )


def _slots(first: jax.Array, time: int) -> jax.Array:
    """Room for a value before the first step, `first`, and one after each step."""
    return jnp.zeros((time + 1, *first.shape), first.dtype).at[0].set(first)


def _programs(batch: int, hidden: int) -> int:
    return (batch // _streams(batch)) * (hidden // _UNITS)


def _streams(batch: int) -> int:
    """The number of streams of a program; a power of two, like all sizes in a kernel."""
    return 2 * _STREAMS if batch % (2 * _STREAMS) == 0 else _STREAMS


def _tile(batch: int) -> Any:
    """The streams and the units of this program."""
    streams = _streams(batch)
    program, tiles = pl.program_id(0), batch // streams
    return pl.ds(program % tiles * streams, streams), pl.ds(program // tiles * _UNITS, _UNITS)
