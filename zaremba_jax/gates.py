"""What the gates of a layer did at every time step, seen afterwards from its outputs.

A kernel keeps its gates to itself. With h of every step known, they are one matrix
product, in which no step waits for another.
"""

import jax.numpy as jnp

from zaremba_jax.array_types import Activations, LayerParams, LayerState, Outputs
from zaremba_jax.cells import CELLS, project_inputs
from zaremba_jax.precision import Precision, matmul


def gate_values(
    params: LayerParams,
    inputs: Activations,
    outputs: Outputs,
    state: LayerState,
    precision: Precision = "float32",
) -> dict[str, Outputs]:
    """The gates of every time step, by their letters in `cells.CELLS`.

    Those of an LSTM are f, i, o and u, of a GRU r, z and n, of the tanh cell h before zoneout.

    Args:
      params: the layer's weights and its kind of cell.
      inputs: what the layer read.
      outputs: h of every step, as the layer gave it; nothing touched its connections
        through time, but for zoneout.
      state: before the first step.
      precision: of the operands of the products.
    """
    cell = CELLS[params.cell]
    before = jnp.concatenate([state.hidden[None], outputs[:-1]])
    projected = project_inputs(params, inputs, precision)
    recurrent = matmul(before, params.recurrent_weights, precision)
    return dict(zip(cell.gates, cell.activate(projected, recurrent), strict=True))
