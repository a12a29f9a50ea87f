"""The LSTM layer with a hand-written backward pass: the same function as the scan, faster.

Differentiating a scan carries the gradient of W_h through the backward loop, which
reads and writes the whole matrix at every time step. Here the forward loop
keeps the gates and cells of all time steps, the backward loop carries only the
gradients of the state, and the gradient of each weight is one matrix product over
all time steps after the loop. The two loops are exchangeable: here they are scans,
in `kernels.pallas_tpu` they are a TPU's kernels.
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
from zaremba_jax.kernels.tiles import pad_recurrent_weights, pad_units
from zaremba_jax.ops.products import (
    as_bits,
    dot,
    dot_few_rows,
    from_bits,
    operand,
    weight_gradient,
)

# Time steps in a pass of a loop on NVIDIA: XLA launches all kernels of a pass as one CUDA graph if
# there are five or more.
STEPS_PER_PASS = 7


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
    return jax.lax.platform_dependent(
        params,
        inputs,
        state,
        cuda=functools.partial(padded_lstm_layer, precision=precision),
        default=functools.partial(lstm_layer_with, scan_loops(), precision=precision),
    )


def padded_lstm_layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision = "float32"
) -> tuple[Outputs, LSTMState]:
    """`lstm_layer` for NVIDIA: several steps per pass of a loop, and units in whole tiles.

    XLA splits a small product's contraction into parts of a fixed number of rows. If the rows
    do not fill them, it pads a copy of W_h at every time step.
    """
    params, hidden = merge_biases(params), state.hidden.shape[-1]
    padded = LayerParams(
        input_weights=pad_units(params.input_weights, hidden),
        recurrent_weights=pad_recurrent_weights(params.recurrent_weights),
        bias=pad_units(params.bias, hidden),
    )
    wide_state = jax.tree.map(lambda x: pad_units(x, hidden), state)
    # A program that is compiled for any number of time steps cannot be unrolled.
    loops = scan_loops(STEPS_PER_PASS if isinstance(inputs.shape[0], int) else 1)
    results = _layer(padded, inputs, wide_state, precision, loops)
    # Without the barrier XLA fuses the slice into the next product, for which it has no tiles.
    return jax.lax.optimization_barrier(jax.tree.map(lambda x: x[..., :hidden], results))


def lstm_layer_with(
    loops: TimeLoops,
    params: LayerParams,
    inputs: Activations,
    state: LSTMState,
    precision: Precision = "float32",
) -> tuple[Outputs, LSTMState]:
    """`lstm_layer` with these loops over time."""
    return _layer(merge_biases(params), inputs, state, precision, loops)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer(
    params: LayerParams,
    inputs: Activations,
    state: LSTMState,
    precision: Precision,
    loops: TimeLoops,
) -> tuple[Outputs, LSTMState]:
    return _forward(params, inputs, state, precision, loops)[0]


def _forward(
    params: LayerParams,
    inputs: Activations,
    state: LSTMState,
    precision: Precision,
    loops: TimeLoops,
) -> tuple[tuple[Outputs, LSTMState], Any]:
    recurrent_weights = operand(params.recurrent_weights, precision)
    projected = project_inputs(params, inputs, precision)
    outputs, final_cell, saved = loops.forward(projected, recurrent_weights, state)
    final_state = LSTMState(hidden=outputs[-1], cell=final_cell)
    return (outputs, final_state), (params, inputs, state, outputs, saved)


def _backward(
    precision: Precision, loops: TimeLoops, residuals: Any, cotangents: tuple[Outputs, LSTMState]
) -> tuple[LayerParams, Activations, LSTMState]:
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
def scan_loops(steps_per_pass: int = 1) -> TimeLoops:
    """Both loops as scans; a pass of a loop runs `steps_per_pass` time steps."""
    return TimeLoops(
        functools.partial(_scan_forward, steps_per_pass=steps_per_pass),
        functools.partial(_scan_backward, steps_per_pass=steps_per_pass),
    )


def _scan_forward(
    projected: Float[Array, "time batch gates"],
    recurrent_weights: Float[Array, "hidden gates"],
    state: LSTMState,
    *,
    steps_per_pass: int,
) -> tuple[Outputs, Float[Array, "batch hidden"], Float[Array, "time batch gates_and_cell"]]:
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
    _, saved = jax.lax.scan(step, initial, projected, unroll=steps_per_pass)
    return *outputs_and_final_cell(saved), saved


def _scan_backward(
    recurrent_weights: Float[Array, "hidden gates"],
    state: LSTMState,
    saved: Float[Array, "time batch gates_and_cell"],
    d_outputs: Outputs,
    d_final_cell: Float[Array, "batch hidden"],
    *,
    steps_per_pass: int,
) -> tuple[Float[Array, "time batch gates"], Float[Array, "batch hidden"]]:
    *_, cells = jnp.split(saved, 5, axis=-1)

    def step(carry, x):
        d_gates, d_cell = carry
        d_output, saved, previous_cell = x
        d_hidden = dot_few_rows(d_gates, recurrent_weights, contract=1) + d_output
        saved_now = [*jnp.split(saved, 5, axis=-1), previous_cell]
        parts, d_cell = gate_gradients(d_hidden, d_cell, saved_now)
        d_gates = jnp.concatenate(parts, axis=-1).astype(recurrent_weights.dtype)
        return (d_gates, d_cell), as_bits(d_gates)

    # A step starts with the product of the following step's d_gates, zeros at first, rather than
    # ending with its own: a GPU then sums the product's parts in the kernel that uses them.
    after_last = jnp.zeros_like(
        d_final_cell,
        recurrent_weights.dtype,
        shape=(d_final_cell.shape[0], recurrent_weights.shape[1]),
    )
    xs = d_outputs, saved, previous_states(state.cell, cells)
    (_, d_cell), d_gates = jax.lax.scan(
        step, (after_last, d_final_cell), xs, reverse=True, unroll=steps_per_pass
    )
    return from_bits(d_gates), d_cell


def gate_gradients(
    d_hidden: jax.Array, d_cell: jax.Array, saved: Sequence[jax.Array]
) -> tuple[list[jax.Array], jax.Array]:
    """One time step back: the gradients of what f, i, o, u are functions of, and of c[t-1].

    Those of c[t] = f c[t-1] + i u and h[t] = o tanh(c[t]) (Zaremba et al. 2014, section 3.1), with
    sigmoid' = s (1 - s) and tanh' = 1 - tanh^2.

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
