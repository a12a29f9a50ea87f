"""The LSTM layer with a hand-written backward pass: the same function as the scan, faster.

Differentiating a scan carries the gradient of W_h through the backward loop, which
reads and writes the whole matrix at every time step. Here the forward loop
keeps the gates and cells of all time steps, the backward loop carries only the
gradients of the state, and the gradient of each weight is one matrix product over
all time steps after the loop. The two loops are exchangeable: here they are scans,
in `kernels.pallas_tpu` and `kernels.pallas_gpu` they are kernels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zaremba_jax.array_types import Activations, LayerParams, LSTMState, Outputs
from zaremba_jax.cells import merge_biases, project_inputs
from zaremba_jax.config import Precision
from zaremba_jax.ops.products import dot, dot_few_rows, operand, weight_gradient

TILE = 128  # units in a tile, of a matrix product on NVIDIA and of an array on a TPU
# Time steps in one pass of a loop on NVIDIA: XLA launches all kernels of a pass as one CUDA graph
# if there are five or more.
UNROLL = 7


class TimeLoops(NamedTuple):
    """The loops over the time steps of a layer, forward and backward.

    Attributes:
      forward: takes the inputs' part of the gates [time, batch, 4 hidden], W_h as an operand
        of products, and the state before the first step; returns h of every step, c after
        the last, and whatever `backward` needs.
      backward: takes W_h, the state, what `forward` saved, and the gradients of h of every step
        and of c after the last; returns the gradients of the gates of every step, as operands
        of products, and of c before the first.
    """

    forward: Callable[[jax.Array, jax.Array, LSTMState], tuple[jax.Array, jax.Array, Any]]
    backward: Callable[
        [jax.Array, LSTMState, Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]
    ]


def lstm_layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision = "float32"
) -> tuple[Outputs, LSTMState]:
    """Runs one layer over all time steps (Zaremba et al. 2014, section 3.1).

    Equal to a scan of `cells.step` in values and gradients, including those of the
    initial state. Reverse-mode differentiation only.

    Args:
      params: the layer's weights.
      inputs: D(h[l-1, t]) for every t, dropout already applied; at least one step.
      state: h[l] and c[l] before the first step.
      precision: of the operands of matrix products, and of the terms of the bias's gradient;
        everything else keeps its dtype.

    Returns:
      h[l, t] for every t, and the state after the last step.
    """
    params = merge_biases(params)
    return jax.lax.platform_dependent(
        params,
        inputs,
        state,
        cuda=functools.partial(padded_lstm_layer, precision=precision),
        default=functools.partial(_layer, precision=precision, loops=scan_loops()),
    )


def padded_lstm_layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision = "float32"
) -> tuple[Outputs, LSTMState]:
    """`lstm_layer` for NVIDIA: unrolled, with units padded to whole tiles.

    XLA splits a small product's contraction into parts of a fixed number of rows. If the rows
    do not fill them, it pads a copy of W_h at every time step. The weights of the added units
    are 0, so their h and c stay 0.
    """
    params, hidden = merge_biases(params), state.hidden.shape[-1]
    padded = LayerParams(
        input_weights=_pad_units(params.input_weights, hidden),
        recurrent_weights=_pad_rows(_pad_units(params.recurrent_weights, hidden), TILE),
        bias=_pad_units(params.bias, hidden),
    )
    wide_state = jax.tree.map(lambda x: _pad_units(x, hidden), state)
    results = _layer(padded, inputs, wide_state, precision, scan_loops(UNROLL))
    # Without the barrier XLA fuses the slice into the next product, for which it has no tiles.
    return jax.lax.optimization_barrier(jax.tree.map(lambda x: x[..., :hidden], results))


def lstm_layer_with(
    loops: TimeLoops,
    params: LayerParams,
    inputs: Activations,
    state: LSTMState,
    precision: Precision = "float32",
) -> tuple[Outputs, LSTMState]:
    """`lstm_layer` with other loops over time."""
    return _layer(merge_biases(params), inputs, state, precision, loops)


def pad_loops(loops: TimeLoops, streams: int) -> TimeLoops:
    """Makes loops over whole tiles work for any sizes: pads with zeros before, slices after.

    The padding stays 0: h and c of added units because their weights are 0, of added streams
    because their inputs and states are 0; and all its gradients.

    Args:
      loops: loops for units in multiples of `TILE` and a batch in multiples of `streams`.
      streams: the number of streams in a tile.
    """

    def pad(x: jax.Array, hidden: int) -> jax.Array:
        return _pad_rows(_pad_units(x, hidden), streams)

    def forward(projected, recurrent_weights, state):
        batch, hidden = state.hidden.shape
        outputs, final_cell, saved = loops.forward(
            pad(projected, hidden),
            _pad_rows(_pad_units(recurrent_weights, hidden), TILE),
            jax.tree.map(lambda x: pad(x, hidden), state),
        )
        return outputs[:, :batch, :hidden], final_cell[:batch, :hidden], saved

    def backward(recurrent_weights, state, saved, d_outputs, d_final_cell):
        batch, hidden = state.hidden.shape
        d_gates, d_cell = loops.backward(
            _pad_rows(_pad_units(recurrent_weights, hidden), TILE),
            jax.tree.map(lambda x: pad(x, hidden), state),
            saved,
            pad(d_outputs, hidden),
            pad(d_final_cell, hidden),
        )
        blocks = d_gates.reshape(*d_gates.shape[:-1], 4, -1)[:, :batch, :, :hidden]
        return blocks.reshape(*blocks.shape[:-2], -1), d_cell[:batch, :hidden]

    return TimeLoops(forward, backward)


def _pad_units(x: jax.Array, hidden: int) -> jax.Array:
    """Pads each block of `hidden` on the last axis, one per gate, with zeros to whole tiles."""
    blocks = x.reshape(*x.shape[:-1], -1, hidden)
    padding = [(0, 0)] * (blocks.ndim - 1) + [(0, -hidden % TILE)]
    return jnp.pad(blocks, padding).reshape(*x.shape[:-1], -1)


def _pad_rows(x: jax.Array, multiple: int) -> jax.Array:
    """Pads the last axis but one with zeros at its end, to a multiple of `multiple`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % multiple), (0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer(
    params: LayerParams,
    inputs: Activations,
    state: LSTMState,
    precision: Precision,
    loops: TimeLoops,
) -> tuple[Outputs, LSTMState]:
    return _forward(params, inputs, state, precision, loops)[0]


def _forward(params, inputs, state, precision, loops):
    recurrent_weights = operand(params.recurrent_weights, precision)
    projected = project_inputs(params, inputs, precision)
    outputs, final_cell, saved = loops.forward(projected, recurrent_weights, state)
    final_state = LSTMState(hidden=outputs[-1], cell=final_cell)
    return (outputs, final_state), (params, inputs, state, outputs, saved)


def _backward(precision, loops, residuals, cotangents):
    params, inputs, state, outputs, saved = residuals
    d_outputs, d_final = cotangents
    recurrent_weights = operand(params.recurrent_weights, precision)
    d_outputs = d_outputs.at[-1].add(d_final.hidden)
    d_gates, d_cell = loops.backward(recurrent_weights, state, saved, d_outputs, d_final.cell)
    d_params = LayerParams(
        input_weights=weight_gradient(operand(inputs, precision), d_gates),
        recurrent_weights=weight_gradient(
            operand(previous_states(state.hidden, outputs), precision), d_gates
        ),
        bias=d_gates.astype(params.bias.dtype).sum(axis=(0, 1)),
    )
    d_inputs = dot(d_gates, operand(params.input_weights, precision), contract=1)
    d_hidden = dot(d_gates[0], recurrent_weights, contract=1)
    return d_params, d_inputs, LSTMState(hidden=d_hidden, cell=d_cell)


_layer.defvjp(_forward, _backward)


@functools.cache
def scan_loops(unroll: int = 1) -> TimeLoops:
    """Both loops as scans, with `unroll` time steps per pass."""
    return TimeLoops(
        functools.partial(_scan_forward, unroll=unroll),
        functools.partial(_scan_backward, unroll=unroll),
    )


def scan_unroll(time: Any, unroll: int = UNROLL) -> int:
    """`unroll`, or 1 if the program is compiled for any number of time steps."""
    return unroll if isinstance(time, int) else 1


def _scan_forward(projected, recurrent_weights, state, *, unroll):
    def step(carry, projected):
        hidden, cell = carry
        gates = _activate(projected + dot_few_rows(hidden, recurrent_weights))
        f, i, o, u = jnp.split(gates, 4, axis=-1)
        cell = f * cell + i * u
        hidden = (o * jnp.tanh(cell)).astype(recurrent_weights.dtype)
        return (hidden, cell), jnp.concatenate([gates, cell], axis=-1)

    # One array is saved, h is rounded in the carry, and h of every step is recomputed after
    # the loop: fewer kernels and stores per time step.
    initial = state.hidden.astype(recurrent_weights.dtype), state.cell
    unroll = scan_unroll(projected.shape[0], unroll)
    _, saved = jax.lax.scan(step, initial, projected, unroll=unroll)
    return *outputs_and_final_cell(saved), saved


def _scan_backward(recurrent_weights, state, saved, d_outputs, d_final_cell, *, unroll):
    *_, cells = jnp.split(saved, 5, axis=-1)

    def step(carry, x):
        d_gates, d_cell = carry
        d_output, saved, previous_cell = x
        d_hidden = dot_few_rows(d_gates, recurrent_weights, contract=1) + d_output
        saved_now = [*jnp.split(saved, 5, axis=-1), previous_cell]
        parts, d_cell = gate_gradients(d_hidden, d_cell, saved_now)
        d_gates = jnp.concatenate(parts, axis=-1).astype(recurrent_weights.dtype)
        return (d_gates, d_cell), d_gates

    # A step starts with the product of the following step's d_gates, zeros at first, rather than
    # ending with its own: a GPU then sums the product's parts in the kernel that uses them.
    after_last = jnp.zeros((len(state.cell), recurrent_weights.shape[1]), recurrent_weights.dtype)
    (_, d_cell), d_gates = jax.lax.scan(
        step,
        (after_last, d_final_cell),
        (d_outputs, saved, previous_states(state.cell, cells)),
        reverse=True,
        unroll=scan_unroll(d_outputs.shape[0], unroll),
    )
    return d_gates, d_cell


def gate_gradients(
    d_hidden: jax.Array, d_cell: jax.Array, saved: Sequence[jax.Array]
) -> tuple[list[jax.Array], jax.Array]:
    """One time step back: the gradients of the four gates' preactivations, and of c[t-1].

    Args:
      d_hidden: the gradient of h[t], [batch, hidden] like all arrays here.
      d_cell: the gradient of c[t], without the part that comes through h[t].
      saved: f, i, o, u, c[t] and c[t-1].
    """
    f, i, o, u, cell, previous_cell = saved
    squashed = jnp.tanh(cell)
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    d_gates = [
        d_cell * previous_cell * f * (1 - f),
        d_cell * u * i * (1 - i),
        d_hidden * squashed * o * (1 - o),
        d_cell * i * (1 - u * u),
    ]
    return d_gates, d_cell * f


def sigmoid(x: jax.Array) -> jax.Array:
    """The sigmoid through tanh, for which accelerators have an instruction."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def outputs_and_final_cell(
    saved: Float[Array, "time batch gates_and_cell"],
) -> tuple[Outputs, Float[Array, "batch hidden"]]:
    """h of every step and the last c, from the gates f, i, o, u and c of every step."""
    _, _, output, _, cells = jnp.split(saved, 5, axis=-1)
    return output * jnp.tanh(cells), cells[-1]


def previous_states(
    initial: Float[Array, "batch hidden"], sequence: Outputs
) -> Float[Array, "time batch hidden"]:
    """The sequence delayed by one step: its value before each time step."""
    return jnp.concatenate([initial[None], sequence[:-1]])


def _activate(gates: jax.Array) -> jax.Array:
    """Sigmoid of f, i and o, tanh of u, in one tanh: sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    hidden = gates.shape[-1] // 4
    is_update = jnp.arange(4 * hidden)[None, :] >= 3 * hidden
    scale = jnp.where(is_update, 1.0, 0.5).astype(gates.dtype)
    return jnp.tanh(gates * scale) * scale + (1 - scale)
