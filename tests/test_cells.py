import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paper_model import lstm_unit_layer

from zaremba_jax.array_types import LSTMParams, LSTMState
from zaremba_jax.cells import lstm_step, project_inputs

FEATURES, HIDDEN, BATCH = 3, 5, 4


@pytest.fixture
def layer(float64):
    rng = np.random.default_rng(0)
    params = LSTMParams(
        input_weights=jnp.asarray(rng.normal(size=(FEATURES, 4 * HIDDEN))),
        recurrent_weights=jnp.asarray(rng.normal(size=(HIDDEN, 4 * HIDDEN))),
        bias=jnp.asarray(rng.normal(size=4 * HIDDEN)),
    )
    x, h, c = (jnp.asarray(rng.normal(size=(BATCH, n))) for n in (FEATURES, HIDDEN, HIDDEN))
    return params, x, LSTMState(hidden=h, cell=c)


def step(params, x, state):
    return lstm_step(params.recurrent_weights, project_inputs(params, x), state)


def test_step_computes_the_paper_s_equations(layer):
    params, x, state = layer
    after = step(params, x, state)
    numpy_params = jax.tree.map(np.asarray, params)
    for b in range(BATCH):
        h, c = lstm_unit_layer(numpy_params, x[b], state.hidden[b], state.cell[b])
        np.testing.assert_allclose(after.hidden[b], h, rtol=1e-12)
        np.testing.assert_allclose(after.cell[b], c, rtol=1e-12)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.OptimizedLSTMCell])
def test_step_equals_flax_with_the_same_weights(layer, cell):
    params, x, state = layer
    # flax names the update gate g.
    names = [("f", 0), ("i", 1), ("o", 2), ("g", 3)]
    parts = {name: slice(k * HIDDEN, (k + 1) * HIDDEN) for name, k in names}
    weights = {f"i{n}": {"kernel": params.input_weights[:, s]} for n, s in parts.items()} | {
        f"h{n}": {"kernel": params.recurrent_weights[:, s], "bias": params.bias[s]}
        for n, s in parts.items()
    }
    (c, h), _ = cell(HIDDEN, param_dtype=jnp.float64).apply(
        {"params": weights}, (state.cell, state.hidden), x
    )
    after = step(params, x, state)
    np.testing.assert_allclose(after.hidden, h, rtol=1e-12)
    np.testing.assert_allclose(after.cell, c, rtol=1e-12)


def test_projection_serves_one_time_step_and_many_alike(layer):
    params, x, _ = layer
    many = project_inputs(params, jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(many[0], project_inputs(params, x), rtol=1e-12)
    np.testing.assert_allclose(many[1], project_inputs(params, 2 * x), rtol=1e-12)


def test_closed_forget_gate_erases_the_past_and_open_one_keeps_it(layer):
    params, _, state = layer
    cut = jnp.zeros_like(params.recurrent_weights)
    # forget, write, output, update
    erase = jnp.repeat(jnp.asarray([-1e3, -1e3, 1e3, 0.0]), HIDDEN)[None, :].repeat(BATCH, 0)
    keep = jnp.repeat(jnp.asarray([1e3, -1e3, 1e3, 0.0]), HIDDEN)[None, :].repeat(BATCH, 0)
    np.testing.assert_array_equal(lstm_step(cut, erase, state).cell, 0)
    np.testing.assert_array_equal(lstm_step(cut, keep, state).cell, state.cell)
