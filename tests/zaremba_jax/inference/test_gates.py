import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_examples import equations, make
from model_examples import model_of

from zaremba_jax.array_types import LSTMState
from zaremba_jax.cells import CELLS, project_inputs, step
from zaremba_jax.config import override
from zaremba_jax.errors import InputError
from zaremba_jax.inference.gates import gate_activations, gate_values
from zaremba_jax.model import Predictor, init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.rnn import unroll_layer, zero_state

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


@pytest.mark.usefixtures("float64")
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


@pytest.mark.usefixtures("float64")
def test_products_of_gates_have_the_precision_of_the_run():
    (params, inputs, state), *_ = jax.tree.map(
        lambda x: x.astype("float32"), make(TIME, BATCH, 3, 2)
    )
    program = jax.make_jaxpr(lambda x: gate_values(params, x, x[..., :2], state, "bfloat16"))(
        inputs
    )
    products = equations(program.jaxpr, "dot_general")
    assert {x.aval.dtype for product in products for x in product.invars} == {jnp.bfloat16.dtype}


def test_gates_of_the_upper_layer_give_the_models_outputs():
    noise = {"zoneout_hidden": 0.4, "zoneout_cell": 0.3}
    config = override(QUICK, hidden_size=4, init_scale=0.5, **noise)
    params, masks = init_params(config.model, 9, key=jax.random.key(0)), expected_masks(config)
    ids = np.arange(30, dtype=np.int32) * 7 % 9
    _, gates = gate_activations(model_of(params, config), ids, streams=3, steps=5)
    hidden = cell = jnp.zeros((3, 4))
    tokens, state = jnp.asarray(ids[:15].reshape(3, 5).T), zero_state(params.layers, 3)
    for t, expected in enumerate(Predictor(params, masks).unroll(tokens, state).outputs):
        new = gates["f"][t] * cell + gates["i"][t] * gates["u"][t]
        hidden = 0.4 * hidden + 0.6 * gates["o"][t] * jnp.tanh(new)
        cell = 0.3 * cell + 0.7 * new
        np.testing.assert_allclose(hidden, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "reason"), [([], "a text of 0 tokens has no gates"), ([9], "9"), ([-1], "-1")]
)
def test_text_that_the_model_cannot_read_has_no_gates(ids, reason):
    params = init_params(override(QUICK, hidden_size=4).model, 9, key=jax.random.key(0))
    with pytest.raises(InputError, match=reason):
        gate_activations(model_of(params), np.array(ids, np.int32), streams=3, steps=5)


@pytest.mark.parametrize(("tokens", "shape"), [(2, (1, 2, 4)), (7, (2, 3, 4)), (60, (5, 3, 4))])
def test_a_short_text_fills_as_much_as_it_can(tokens, shape):
    params = init_params(override(QUICK, hidden_size=4).model, 9, key=jax.random.key(0))
    gates = gate_activations(model_of(params), np.zeros(tokens, np.int32), streams=3, steps=5)
    assert gates[0]["f"].shape == shape
