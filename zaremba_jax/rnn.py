"""The deep recurrent network: a loop over layers around a loop over time, with its masks."""

import jax.numpy as jnp

from zaremba_jax.array_types import (
    Activations,
    LayerParams,
    LayerState,
    Masks,
    Outputs,
    RecurrentMasks,
    RNNState,
)
from zaremba_jax.cells import CELLS, drop, unpack_state
from zaremba_jax.config import ComputeConfig
from zaremba_jax.kernels.implementations import IMPLEMENTATIONS, choose
from zaremba_jax.ops.varying import varying_alike


def zero_state(layers: tuple[LayerParams, ...], batch_size: int) -> RNNState:
    """The state before the first token: one record per layer, all zeros."""

    def zeros(layer: LayerParams) -> LayerState:
        shape = (batch_size, len(layer.recurrent_weights))
        arrays = [jnp.zeros(shape, layer.bias.dtype) for _ in CELLS[layer.cell].carries]
        return unpack_state(layer.cell, arrays)

    return tuple(map(zeros, layers))


def unroll_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Outputs, LayerState]:
    """Runs one layer over all time steps.

    Args:
      params: the layer's weights and its kind of cell.
      inputs: D(h[l-1, t]) for every t, dropout already applied; cast to the weights' dtype.
      state: the layer's state before the first step.
      masks: the masks on its connections through time; None for none.
      compute: precision, and `kernel`, which chooses among the equivalent implementations in
        `kernels.implementations`.

    Returns:
      h[l, t] for every t, and the state after the last step.
    """
    layer = IMPLEMENTATIONS[choose(compute, params, state, masks).kernel]
    inputs = inputs.astype(params.input_weights.dtype)
    return layer(*varying_alike((params, inputs, state, masks)), compute.precision)


def deep_rnn(
    layers: tuple[LayerParams, ...],
    inputs: Activations,
    state: RNNState,
    masks: Masks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Outputs, RNNState]:
    """Runs all layers over all time steps (Zaremba et al. 2014, section 3.2, figure 2).

    Each layer runs over the whole window before the next one starts. This computes
    the same as stepping all layers at each time step, with one large matrix product
    per layer for its inputs.

    >>> import jax
    >>> from zaremba_jax.presets import QUICK
    >>> from zaremba_jax.model import init_params
    >>> layers = init_params(QUICK.model, 50, key=jax.random.key(0)).layers
    >>> time, batch, features = 20, 3, 128
    >>> inputs = jnp.ones((time, batch, features))
    >>> outputs, state = deep_rnn(layers, inputs, zero_state(layers, batch))
    >>> outputs.shape, state[1].cell.shape
    ((20, 3, 128), (3, 128))

    Args:
      layers: the weights, bottom layer first.
      inputs: the embedded tokens.
      state: one record per layer.
      masks: the window's noise, of which the caller applies `words` and `output`; None for
        none.
      compute: precision and kernel.

    Returns:
      The last layer's outputs, and the state after the last step.
    """
    masks, nothing = masks or Masks(), (None,) * len(layers)
    below, final_state = inputs, []
    for layer, layer_state, mask, through_time in zip(
        layers, state, masks.inputs or nothing, masks.recurrent or nothing, strict=True
    ):
        # Section 3.2: D masks h[l-1, t] only, never h[l, t-1].
        below, layer_state = unroll_layer(
            layer, drop(below, mask), layer_state, through_time, compute
        )
        final_state.append(layer_state)
    return below, tuple(final_state)
