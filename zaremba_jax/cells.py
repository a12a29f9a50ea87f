"""One pure step of a recurrent cell, and the affine map of its inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zaremba_jax.array_types import LSTMParams, LSTMState
from zaremba_jax.precision import Precision, matmul


def project_inputs(
    params: LSTMParams, inputs: Float[Array, "*any features"], precision: Precision = "float32"
) -> Float[Array, "*any gates"]:
    """The part of every gate that does not depend on the past: `D(h[l-1]) @ W_x + b`.

    Any number of leading axes, so that one matrix product serves all time steps.
    """
    bias = jnp.expand_dims(params.bias, range(inputs.ndim - 1))
    return matmul(inputs, params.input_weights, precision) + bias


def lstm_step(
    recurrent_weights: Float[Array, "hidden gates"],
    projected: Float[Array, "batch gates"],
    state: LSTMState,
    precision: Precision = "float32",
) -> LSTMState:
    """One time step of an LSTM layer (Zaremba et al. 2014, section 3.1).

    With z = projected + h[t-1] @ W_h cut into four parts z_f, z_i, z_o, z_u:

        f = sigmoid(z_f)    o = sigmoid(z_o)    c[t] = f * c[t-1] + i * u
        i = sigmoid(z_i)    u = tanh(z_u)       h[t] = o * tanh(c[t])

    Args:
      recurrent_weights: W_h; gate order f, i, o, u.
      projected: the inputs' part of the gates at this step, from `project_inputs`.
        Dropout has touched it already; nothing here drops h[t-1] or c[t-1].
      state: h[t-1] and c[t-1].
      precision: of the operands of the matrix product.

    Returns:
      h[t] and c[t].
    """
    gates = projected + matmul(state.hidden, recurrent_weights, precision)
    forget, write, output, update = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * state.cell + jax.nn.sigmoid(write) * jnp.tanh(update)
    return LSTMState(hidden=jax.nn.sigmoid(output) * jnp.tanh(cell), cell=cell)
