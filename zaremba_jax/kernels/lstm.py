"""The LSTM layer with a hand-written backward pass: the same function as the scan, faster.

Differentiating a scan carries the gradient of W_h through the backward loop, a
read and a write of the whole matrix at every time step. Here the forward loop
keeps the gates and cells of all time steps, the backward loop carries the
gradients of the state alone, and each gradient of a weight is one matrix
product over all time steps after it.
"""

import functools

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import Activations, LayerParams, LSTMState, Outputs
from zaremba_jax.cells import project_inputs
from zaremba_jax.precision import Precision, multiply, multiply_rows, operand, weight_gradient

_TILE = 128  # units, of a GPU's matrix product


def lstm_layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision = "float32"
) -> tuple[Outputs, LSTMState]:
    """Runs one layer over all time steps (Zaremba et al. 2014, section 3.1).

    Equal to a scan of `cells.step` in values and gradients, those of the
    initial state included. Reverse-mode differentiation only.

    Args:
      params: the layer's weights.
      inputs: D(h[l-1, t]) for every t, dropout already applied; at least one step.
      state: h[l] and c[l] before the first step.
      precision: of the operands of matrix products; everything else keeps its type.

    Returns:
      h[l, t] for every t, and the state after the last step.
    """
    if state.hidden.shape[-1] % _TILE == 0:
        return _layer(params, inputs, state, precision)
    # XLA for NVIDIA cuts a small product's contraction into parts of so many rows. Where the
    # rows do not suffice, it pads a copy of W_h, at every time step.
    return jax.lax.platform_dependent(
        params,
        inputs,
        state,
        cuda=functools.partial(padded_lstm_layer, precision=precision),
        default=functools.partial(_layer, precision=precision),
    )


def padded_lstm_layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision = "float32"
) -> tuple[Outputs, LSTMState]:
    """`lstm_layer` with units added up to whole tiles; their weights are 0, so h and c stay 0."""
    hidden = state.hidden.shape[-1]

    def widen(x: jax.Array) -> jax.Array:
        blocks = x.reshape(*x.shape[:-1], -1, hidden)  # one a gate
        padding = [(0, 0)] * (blocks.ndim - 1) + [(0, -hidden % _TILE)]
        return jnp.pad(blocks, padding).reshape(*x.shape[:-1], -1)

    padded = LayerParams(
        input_weights=widen(params.input_weights),
        recurrent_weights=widen(widen(params.recurrent_weights).T).T,
        bias=widen(params.bias),
    )
    results = _layer(padded, inputs, jax.tree.map(widen, state), precision)
    # Without the barrier XLA fuses the cut into the next product, for which it has no tiles.
    return jax.lax.optimization_barrier(jax.tree.map(lambda x: x[..., :hidden], results))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer(
    params: LayerParams, inputs: Activations, state: LSTMState, precision: Precision
) -> tuple[Outputs, LSTMState]:
    return _forward(params, inputs, state, precision)[0]


def _forward(params, inputs, state, precision):
    recurrent_weights = operand(params.recurrent_weights, precision)

    def step(carry, projected):
        hidden, cell = carry
        gates = _activate(projected + multiply_rows(hidden, recurrent_weights))
        forget, write, output, update = jnp.split(gates, 4, axis=-1)
        cell = forget * cell + write * update
        hidden = operand(output * jnp.tanh(cell), precision)
        return (hidden, cell), jnp.concatenate([gates, cell], axis=-1)

    # One array is saved, h is rounded in the carry, and h of every step is formed again after
    # the loop: fewer kernels and stores a time step.
    initial = operand(state.hidden, precision), state.cell
    _, saved = jax.lax.scan(step, initial, project_inputs(params, inputs, precision))
    _, _, output, _, cells = jnp.split(saved, 5, axis=-1)
    outputs = output * jnp.tanh(cells)
    final_state = LSTMState(hidden=outputs[-1], cell=cells[-1])
    return (outputs, final_state), (params, inputs, state, saved, outputs)


def _backward(precision, residuals, cotangents):
    params, inputs, state, saved, outputs = residuals
    *_, cells = jnp.split(saved, 5, axis=-1)
    d_outputs, d_final = cotangents
    recurrent_weights = operand(params.recurrent_weights, precision)

    def step(carry, now):
        d_gates, d_cell = carry
        d_output, saved, previous_cell = now
        forget, write, output, update, cell = jnp.split(saved, 5, axis=-1)
        squashed = jnp.tanh(cell)
        d_hidden = multiply_rows(d_gates, recurrent_weights, contract=1) + d_output
        d_cell = d_cell + d_hidden * output * (1 - squashed * squashed)
        d_gates = jnp.concatenate(
            [
                d_cell * previous_cell * forget * (1 - forget),
                d_cell * update * write * (1 - write),
                d_hidden * squashed * output * (1 - output),
                d_cell * write * (1 - update * update),
            ],
            axis=-1,
        )
        d_gates = operand(d_gates, precision)
        return (d_gates, d_cell * forget), d_gates

    # A step starts with the product of d_gates of the step after it, zeros at first, and does
    # not end with its own: a GPU then sums the product's parts in the kernel that uses them.
    after_last = jnp.zeros(saved.shape[1:-1] + params.bias.shape, params.bias.dtype)
    (first, d_cell), d_gates = jax.lax.scan(
        step,
        (operand(after_last, precision), d_final.cell),
        (d_outputs.at[-1].add(d_final.hidden), saved, _shifted(state.cell, cells)),
        reverse=True,
    )
    d_params = LayerParams(
        input_weights=weight_gradient(operand(inputs, precision), d_gates),
        recurrent_weights=weight_gradient(
            operand(_shifted(state.hidden, outputs), precision), d_gates
        ),
        bias=d_gates.astype(params.bias.dtype).sum(axis=(0, 1)),
    )
    d_inputs = multiply(d_gates, operand(params.input_weights, precision), contract=1)
    d_state = LSTMState(hidden=multiply(first, recurrent_weights, contract=1), cell=d_cell)
    return d_params, d_inputs, d_state


def _activate(gates: jax.Array) -> jax.Array:
    """Sigmoid of f, i and o, tanh of u, by one tanh: sigmoid(x) = (1 + tanh(x / 2)) / 2."""
    hidden = gates.shape[-1] // 4
    is_update = jnp.arange(4 * hidden)[None, :] >= 3 * hidden
    scale = jnp.where(is_update, 1.0, 0.5).astype(gates.dtype)
    return jnp.tanh(gates * scale) * scale + (1 - scale)


def _shifted(initial: jax.Array, sequence: jax.Array) -> jax.Array:
    """The sequence one step late: what each time step found."""
    return jnp.concatenate([initial[None], sequence[:-1]])


_layer.defvjp(_forward, _backward)
