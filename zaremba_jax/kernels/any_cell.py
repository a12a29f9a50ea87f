"""A layer of any cell, with any masks, with a partly hand-written backward pass.

As in `kernels.lstm`, the backward loop carries only the gradients of the state, and
the gradient of each weight is one matrix product after the loop. The cell's equations at
each time step are differentiated by jax.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import Activations, LayerParams, LayerState, Outputs, RecurrentMasks
from zaremba_jax.cells import advance, drop_hidden, merge_biases, project_inputs
from zaremba_jax.config import Precision
from zaremba_jax.ops.products import (
    as_bits,
    dot,
    dot_few_rows,
    from_bits,
    operand,
    weight_gradient,
)


def cell_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks,
    precision: Precision = "float32",
) -> tuple[Outputs, LayerState]:
    """Runs one layer over all time steps.

    Equal to a scan of `cells.step` in values and gradients, including those of the initial
    state and of masks. Reverse-mode differentiation only.

    Args:
      params: the layer's weights and its kind of cell.
      inputs: D(h[l-1, t]) for every t, dropout already applied; at least one step.
      state: before the first step.
      masks: over all time steps, each with a time axis of full length.
      precision: of the operands of matrix products; everything else keeps its dtype.

    Returns:
      h[l, t] for every t, and the state after the last step.
    """
    return _layer(merge_biases(params), inputs, state, masks, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    return _forward(params, inputs, state, masks, precision)[0]


def _forward(params, inputs, state, masks, precision):
    weights = operand(params.recurrent_weights, precision)

    def step(state, x):
        projected, masks = x
        recurrent = dot_few_rows(operand(drop_hidden(state, masks), precision), weights)
        new_state = advance(params.cell, projected, recurrent, state, masks)
        return new_state, (recurrent, state, new_state.hidden)

    projected = project_inputs(params, inputs, precision)
    final_state, (recurrent, before, outputs) = jax.lax.scan(step, state, (projected, masks))
    return (outputs, final_state), (params, inputs, masks, projected, recurrent, before)


def _backward(precision, residuals, cotangents):
    params, inputs, masks, projected, recurrent, before = residuals
    d_outputs, d_final = cotangents
    weights = operand(params.recurrent_weights, precision)

    def step(d_state, x):
        d_output, projected, recurrent, before, masks = x
        d_after = dataclasses.replace(d_state, hidden=d_state.hidden + d_output)
        equations = functools.partial(advance, params.cell)
        _, pull_back = jax.vjp(equations, projected, recurrent, before, masks)
        d_projected, d_recurrent, *d_direct = pull_back(d_after)
        d_gates = operand(d_recurrent, precision)
        _, pull_back = jax.vjp(drop_hidden, before, masks)
        d_through_product = pull_back(dot_few_rows(d_gates, weights, contract=1))
        d_before, d_masks = jax.tree.map(jnp.add, tuple(d_direct), d_through_product)
        return d_before, (d_projected, as_bits(d_gates), d_masks)

    # If the gradients of masks are not used, XLA does not compute them.
    d_state, (d_projected, d_gates, d_masks) = jax.lax.scan(
        step, d_final, (d_outputs, projected, recurrent, before, masks), reverse=True
    )
    d_gates, d_inputs_gates = from_bits(d_gates), operand(d_projected, precision)
    # Not `replace`: a parameter that is left out has a gradient of 0, and not itself for one.
    d_params = LayerParams(
        input_weights=weight_gradient(operand(inputs, precision), d_inputs_gates),
        recurrent_weights=weight_gradient(operand(drop_hidden(before, masks), precision), d_gates),
        bias=d_projected.sum(axis=(0, 1)),
        cell=params.cell,
    )
    d_inputs = dot(d_inputs_gates, operand(params.input_weights, precision), contract=1)
    return d_params, d_inputs, d_state, d_masks


_layer.defvjp(_forward, _backward)
