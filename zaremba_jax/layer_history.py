"""What a layer was at every time step, seen afterwards from its outputs.

A kernel gives h of every step and the last state, and keeps all else to itself. With h
known, the gates of all steps are one matrix product, in which no step waits for another,
and the states follow from them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import Activations, LayerParams, LayerState, LSTMState, Outputs
from zaremba_jax.cells import advance, project_inputs
from zaremba_jax.precision import Precision, matmul

Lengths = Int[Array, " batch"]


def gate_sums(
    params: LayerParams,
    inputs: Activations,
    outputs: Outputs,
    state: LayerState,
    precision: Precision = "float32",
) -> tuple[Float[Array, "time batch gates"], Float[Array, "time batch gates"]]:
    """Both products of every time step, `projected` and `recurrent` of `cells`.

    Args:
      params: the layer's weights and its kind of cell.
      inputs: what the layer read.
      outputs: h of every step, as the layer gave it; nothing touched its connections
        through time, but for zoneout.
      state: before the first step.
      precision: of the operands of the products.
    """
    before = jnp.concatenate([state.hidden[None], outputs[:-1]])
    projected = project_inputs(params, inputs, precision)
    return projected, matmul(before, params.recurrent_weights, precision)


def gate_values(
    params: LayerParams,
    inputs: Activations,
    outputs: Outputs,
    state: LayerState,
    precision: Precision = "float32",
) -> dict[str, Outputs]:
    """The gates of every time step, by the letters of `array_types`; arguments as above.

    Those of an LSTM are f, i, o and u, of a GRU r, z and n. The tanh cell has none: its h.
    """
    if params.cell == "tanh":
        return {"h": outputs}
    projected, recurrent = gate_sums(params, inputs, outputs, state, precision)
    if params.cell == "lstm":
        *sigmoids, update = jnp.split(projected + recurrent, 4, axis=-1)
        f, i, o = map(jax.nn.sigmoid, sigmoids)
        return {"f": f, "i": i, "o": o, "u": jnp.tanh(update)}
    reset, keep, candidate = jnp.split(projected, 3, axis=-1)
    past_reset, past_keep, past_candidate = jnp.split(recurrent, 3, axis=-1)
    r = jax.nn.sigmoid(reset + past_reset)
    n = jnp.tanh(candidate + r * past_candidate)
    return {"r": r, "z": jax.nn.sigmoid(keep + past_keep), "n": n}


def state_after(
    params: LayerParams,
    inputs: Activations,
    outputs: Outputs,
    state: LayerState,
    lengths: Lengths,
    precision: Precision = "float32",
) -> LayerState:
    """The state after the last step of each sequence of a batch; other arguments as above.

    Args:
      lengths: steps of each sequence, 0 to time. After none the state is that before the
        first step.
    """
    every = dataclasses.replace(state, hidden=outputs)
    if isinstance(state, LSTMState):

        def step(before: LayerState, sums: tuple[jax.Array, jax.Array]):
            after = advance(params.cell, *sums, before)
            return after, after

        _, states = jax.lax.scan(step, state, gate_sums(params, inputs, outputs, state, precision))
        every = dataclasses.replace(states, hidden=outputs)
    streams = jnp.arange(len(lengths))
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest])[lengths, streams], state, every
    )
