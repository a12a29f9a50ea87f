import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_stack import assert_close

from zaremba_jax.array_types import HiddenState, LSTMState
from zaremba_jax.interop.flax_weights import linen_layer, nnx_layer
from zaremba_jax.rnn import unroll_layer

TIME, BATCH, FEATURES, HIDDEN = 3, 2, 4, 5


@pytest.fixture
def normal():
    """Draws arrays of a given shape, the same in a test whatever ran before it."""
    rng = np.random.default_rng(0)
    return lambda *shape: jnp.asarray(rng.normal(size=shape))


def randomized(params, normal):
    return jax.tree.map(lambda x: normal(*x.shape) / 2, params)


def example(kind, normal):
    """Inputs, Flax's carry, the same as a state, and the weights of a loss over the results."""
    c, h = normal(BATCH, HIDDEN), normal(BATCH, HIDDEN)
    lstm = "LSTM" in kind
    carry, state = ((c, h), LSTMState(h, c)) if lstm else (h, HiddenState(h))
    weights = [normal(TIME, BATCH, HIDDEN), normal(BATCH, HIDDEN), normal(BATCH, HIDDEN)]
    return normal(TIME, BATCH, FEATURES), carry, state, weights if lstm else weights[:2]


def weighed(results, weights):
    leaves = jax.tree.leaves(results)
    assert len(leaves) == len(weights)
    return sum((a * b).sum() for a, b in zip(leaves, weights, strict=True))


def differentiated(call, params, inputs, weights):
    """Gradients for the parameters and the inputs, and the outputs."""

    def loss(params, inputs):
        carry, outputs = call(params, inputs)
        return weighed((outputs, carry), weights), outputs

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, inputs)


def ours(layer, inputs, state, weights):
    def call(layer, inputs):
        outputs, end = unroll_layer(layer, inputs, state)
        carry = (end.cell, end.hidden) if isinstance(end, LSTMState) else end.hidden
        return carry, outputs

    return differentiated(call, layer, inputs, weights)


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_layer_of_an_nnx_cell_equals_it_in_values_and_gradients(float64, normal, kind):
    cell = getattr(nnx, kind)(
        FEATURES, HIDDEN, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    graph, params = nnx.split(cell)
    params = randomized(params, normal)
    inputs, carry, state, weights = example(kind, normal)

    def call(params, inputs):
        rnn = nnx.RNN(nnx.merge(graph, params), time_major=True, return_carry=True)
        return rnn(inputs, initial_carry=carry)

    (gradient, by_inputs), outputs = differentiated(call, params, inputs, weights)
    actual = ours(nnx_layer(nnx.merge(graph, params)), inputs, state, weights)
    assert_close(actual, ((nnx_layer(nnx.merge(graph, gradient)), by_inputs), outputs))


@pytest.mark.parametrize("kind", ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"])
def test_layer_of_a_linen_cell_equals_it_in_values_and_gradients(float64, normal, kind):
    cell = getattr(nn, kind)(HIDDEN, param_dtype=jnp.float64)
    rnn = nn.RNN(cell, time_major=True, return_carry=True)
    inputs, carry, state, weights = example(kind, normal)
    params = randomized(rnn.init(jax.random.key(0), inputs)["params"]["cell"], normal)
    if kind == "GRUCell":
        params["hn"]["bias"] = jnp.zeros(HIDDEN)

    def call(params, inputs):
        return rnn.apply({"params": {"cell": params}}, inputs, initial_carry=carry)

    (gradient, by_inputs), outputs = differentiated(call, params, inputs, weights)
    actual = ours(linen_layer(cell, params), inputs, state, weights)
    if kind == "GRUCell":
        gradient["hn"]["bias"] = jnp.zeros(HIDDEN)  # of the bias that the layer lacks
    assert_close(actual, ((linen_layer(cell, gradient), by_inputs), outputs))


def test_partitioned_weights_of_a_linen_cell_are_those_without_their_names():
    draw = nn.initializers.lecun_normal()
    x, carry = jnp.ones((BATCH, FEATURES)), jnp.ones((BATCH, HIDDEN))
    expected, actual = (
        linen_layer(cell, cell.init(jax.random.key(0), carry, x)["params"])
        for cell in (
            nn.SimpleCell(HIDDEN, kernel_init=draw),
            nn.SimpleCell(HIDDEN, kernel_init=nn.with_partitioning(draw, ("embed", "hidden"))),
        )
    )
    assert_close(actual, expected)


def test_linen_gru_with_a_second_bias_is_refused():
    cell, x = nn.GRUCell(HIDDEN), jnp.ones((BATCH, FEATURES))
    params: Any = cell.init(jax.random.key(0), jnp.ones((BATCH, HIDDEN)), x)["params"]
    linen_layer(cell, params)
    with pytest.raises(ValueError, match=r"bias hn is zero is not known under jax\.jit; make the"):
        jax.jit(functools.partial(linen_layer, cell))(params)
    params["hn"]["bias"] += 1e-3
    with pytest.raises(ValueError, match=r"second bias, hn, is not zero.*train nnx\.GRUCell"):
        linen_layer(cell, params)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (nn.MGUCell(HIDDEN), "MGUCell: there is no such layer here; use one of LSTMCell"),
        (nn.GRUCell(HIDDEN, gate_fn=nn.hard_sigmoid), "gate_fn"),
        (nn.LSTMCell(HIDDEN, activation_fn=nn.relu), "activation_fn"),
        (nn.SimpleCell(HIDDEN, residual=True), "residual"),
        (nn.LSTMCell(HIDDEN, carry_init=nn.initializers.ones), "LSTMCell: starts from its own"),
    ],
)
def test_what_has_other_equations_is_refused(cell, reason):
    with pytest.raises(ValueError, match=reason):
        linen_layer(cell, {})


def test_nnx_cell_that_does_not_start_from_zeros_is_refused():
    cell = nnx.SimpleCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    cell.carry_init = nnx.initializers.zeros_init()
    nnx_layer(cell)
    cell.carry_init = nnx.initializers.ones_init()  # as a constructor argument it is deprecated
    with pytest.raises(ValueError, match="SimpleCell: starts from its own carry_init"):
        nnx_layer(cell)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"params": {"cell": {}}}, "params"),
        ({"h": {}, "i": {}}, "h, i"),
        ({}, ""),
    ],
)
def test_what_are_no_parameters_of_the_cell_is_refused(params, names):
    reason = f"parameters {names}: those of GRUCell are hn, hr, hz, in, ir, iz; give these alone"
    with pytest.raises(ValueError, match=reason):
        linen_layer(nn.GRUCell(HIDDEN), params)
