"""The gate values of a layer at every time step, recomputed from its outputs.

Kernels do not return their gates. Once h of every step is known, one matrix product
gives them for all steps, with no step waiting for another.
"""

from zaremba_jax.array_types import Activations, LayerParams, LayerState, Outputs
from zaremba_jax.cells import CELLS, project_inputs
from zaremba_jax.config import Precision
from zaremba_jax.kernels.lstm import previous_states
from zaremba_jax.ops.products import matmul


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
