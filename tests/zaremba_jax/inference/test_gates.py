import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_examples import equations, make

from zaremba_jax.array_types import LSTMState
from zaremba_jax.cells import CELLS, project_inputs, step
from zaremba_jax.inference.gates import gate_values
from zaremba_jax.rnn import unroll_layer

pytestmark = pytest.mark.usefixtures("float64")

TIME, BATCH = 4, 5


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)


def stepped(params, inputs, state):
    """The states after every step, in order."""
    states = []
    for x in inputs:
        state = step(params, project_inputs(params, x), state)
        states.append(state)
    return states


@pytest.mark.parametrize("cell", CELLS)
def test_the_gates_give_the_next_state(cell):
    (params, inputs, state), *_ = make(TIME, BATCH, 3, 2, "float64", cell)
    outputs, _ = unroll_layer(params, inputs, state)
    gates = gate_values(params, inputs, outputs, state)
    before = state
    for t, after in enumerate(stepped(params, inputs, state)):
        gate = {name: value[t] for name, value in gates.items()}
        if isinstance(before, LSTMState):
            assert isinstance(after, LSTMState)
            assert_close(gate["f"] * before.cell + gate["i"] * gate["u"], after.cell)
            assert_close(gate["o"] * jnp.tanh(after.cell), after.hidden)
        elif cell == "gru":
            assert_close((1 - gate["z"]) * gate["n"] + gate["z"] * before.hidden, after.hidden)
            of_inputs, of_past = (
                jnp.split(product, 3, axis=-1)[CELLS[cell].gates.index("n")]
                for product in (
                    project_inputs(params, inputs[t]),
                    before.hidden @ params.recurrent_weights,
                )
            )
            assert_close(gate["n"], jnp.tanh(of_inputs + gate["r"] * of_past))
        else:
            assert_close(gate["h"], after.hidden)
        before = after


def test_products_of_gates_have_the_precision_of_the_run():
    (params, inputs, state), *_ = jax.tree.map(
        lambda x: x.astype("float32"), make(TIME, BATCH, 3, 2)
    )
    program = jax.make_jaxpr(lambda x: gate_values(params, x, x[..., :2], state, "bfloat16"))(
        inputs
    )
    products = equations(program.jaxpr, "dot_general")
    assert {x.aval.dtype for product in products for x in product.invars} == {jnp.bfloat16.dtype}
