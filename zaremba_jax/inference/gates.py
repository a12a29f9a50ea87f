"""The gate values of a layer at every time step, recomputed from its outputs; those of a model.

Kernels do not return their gates. Once h of every step is known, one matrix product
gives them for all steps, with no step waiting for another.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import Activations, LayerParams, LayerState, Masks, Outputs, Tokens
from zaremba_jax.cells import CELLS, project_inputs
from zaremba_jax.config import Precision
from zaremba_jax.errors import InputError
from zaremba_jax.kernels.lstm import previous_states
from zaremba_jax.limits import whole_number
from zaremba_jax.model import Model, Predictor
from zaremba_jax.ops.products import matmul
from zaremba_jax.rnn import unroll_layer

Gates = tuple[dict[str, Outputs], ...]  # of each layer, by letter


def gate_values(
    params: LayerParams,
    inputs: Activations,
    outputs: Outputs,
    state: LayerState,
    precision: Precision = "float32",
) -> dict[str, Outputs]:
    """The gates of every time step, by their letters in `cells.CELLS`.

    An LSTM has f, i, o and u, a GRU r, z and n, the tanh cell h (before zoneout).

    Args:
      params: the layer's weights and its kind of cell.
      inputs: what the layer read.
      outputs: h of every step, as the layer returned it, without noise on its connections
        through time other than zoneout.
      state: before the first step.
      precision: of the operands of the products.
    """
    cell = CELLS[params.cell]
    projected = project_inputs(params, inputs, precision)
    previous_hidden = previous_states(state.hidden, outputs)
    recurrent = matmul(previous_hidden, params.recurrent_weights, precision)
    return dict(zip(cell.gates, cell.activate(projected, recurrent), strict=True))


def gate_activations(model: Model, ids: np.ndarray, streams: int, steps: int) -> Gates:
    """The gates of a model that reads the beginning of a text from the zero state.

    Args:
      model: the model.
      ids: the text, at least one token.
      streams: streams side by side, fewer if the text has fewer tokens.
      steps: tokens of each stream, fewer if the text is too short.

    Raises:
      InputError: the text is empty, a count is not a whole number of at least 1, or as for
        `Model.check_ids`.
    """
    if len(ids) == 0:
        raise InputError("a text of 0 tokens has no gates; give at least 1")
    model.check_ids(ids)
    streams = min(whole_number("streams", streams, at_least=1), len(ids))
    steps = min(whole_number("steps", steps, at_least=1), len(ids) // streams)
    tokens = ids[: streams * steps].reshape(streams, steps).T
    return _gates(model.predictor, jnp.asarray(tokens, jnp.int32))


@jax.jit
def _gates(predictor: Predictor, tokens: Tokens) -> Gates:
    layers, masks, compute = predictor.params.layers, predictor.masks, predictor.compute
    recurrent = (masks or Masks()).recurrent or (None,) * len(layers)
    states = predictor.zero_state(tokens.shape[1])
    inputs, gates = predictor.params.embedding[tokens], []
    for layer, state, through_time in zip(layers, states, recurrent, strict=True):
        outputs, _ = unroll_layer(layer, inputs, state, through_time, compute)
        gates.append(gate_values(layer, inputs, outputs, state, compute.precision))
        inputs = outputs
    return tuple(gates)
