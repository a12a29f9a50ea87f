"""The deep recurrent network: layers outside, time inside, masks on layer inputs only."""

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import Activations, DropoutMasks, LSTMParams, LSTMState, Outputs
from zaremba_jax.cells import lstm_step, project_inputs
from zaremba_jax.config import ComputeConfig
from zaremba_jax.lstm_kernel import lstm_layer


def zero_state(layers: tuple[LSTMParams, ...], batch_size: int) -> tuple[LSTMState, ...]:
    """The state before the first token, one record a layer: all zeros."""

    def zeros(layer: LSTMParams) -> jax.Array:
        return jnp.zeros((batch_size, layer.recurrent_weights.shape[0]), layer.bias.dtype)

    return tuple(LSTMState(hidden=zeros(layer), cell=zeros(layer)) for layer in layers)


def unroll_layer(
    params: LSTMParams,
    inputs: Activations,
    state: LSTMState,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Outputs, LSTMState]:
    """Runs one layer over all time steps.

    Args:
      params: the layer's weights.
      inputs: D(h[l-1, t]) for every t, dropout already applied.
      state: h[l] and c[l] before the first step.
      compute: `kernel` chooses between `lstm_kernel.lstm_layer` and the readable scan
        of `cells.lstm_step`, which compute the same.

    Returns:
      h[l, t] for every t, and the state after the last step.
    """
    if compute.kernel == "xla":
        return lstm_layer(params, inputs, state, compute.precision)

    def step(state, projected):
        state = lstm_step(params.recurrent_weights, projected, state, compute.precision)
        return state, state.hidden

    state, outputs = jax.lax.scan(step, state, project_inputs(params, inputs, compute.precision))
    return outputs, state


def deep_rnn(
    layers: tuple[LSTMParams, ...],
    inputs: Activations,
    state: tuple[LSTMState, ...],
    masks: DropoutMasks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Outputs, tuple[LSTMState, ...]]:
    """Runs all layers over all time steps (Zaremba et al. 2014, section 3.2, figure 2).

    A layer runs over the whole window before the next one starts, which
    computes the same as stepping all layers at each time step, with one large
    matrix product a layer for its inputs.

    Args:
      layers: the weights, bottom layer first.
      inputs: the embedded tokens.
      state: one record a layer.
      masks: factors of the L + 1 dropout sites; None drops nothing.
      compute: precision and kernel.

    Returns:
      The last layer's outputs, dropped out too, and the state after the last step.
    """
    final_state = []
    for depth, (layer, layer_state) in enumerate(zip(layers, state, strict=True)):
        # Eq. 1-6: D masks h[l-1, t] only, never h[l, t-1].
        dropped = inputs if masks is None else inputs * masks.inputs[depth]
        inputs, layer_state = unroll_layer(layer, dropped, layer_state, compute)
        final_state.append(layer_state)
    outputs = inputs if masks is None else inputs * masks.output
    return outputs, tuple(final_state)
