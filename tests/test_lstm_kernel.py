import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zaremba_jax.array_types import LSTMParams, LSTMState
from zaremba_jax.config import ComputeConfig
from zaremba_jax.lstm_kernel import lstm_layer, padded_lstm_layer
from zaremba_jax.rnn import unroll_layer

# The same function up to rounding: of the type, and in bfloat16 of the operands too, where a
# value on the edge may round to either side.
TOLERANCE = {
    ("float64", "float32"): 1e-10,
    ("float32", "float32"): 1e-4,
    ("float32", "bfloat16"): 3e-2,
}


def make(time, batch, features, hidden, dtype="float32"):
    """A layer, inputs and a state, random, and the weights of a loss that uses every result."""
    rng = np.random.default_rng([time, batch, features, hidden])

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)

    def state():
        return LSTMState(hidden=normal(batch, hidden), cell=normal(batch, hidden))

    params = LSTMParams(
        input_weights=normal(features, 4 * hidden),
        recurrent_weights=normal(hidden, 4 * hidden),
        bias=normal(4 * hidden),
    )
    results = normal(time, batch, hidden), state()
    return (params, normal(time, batch, features), state()), results


def values_and_gradients(kernel, precision, arguments, weights):
    compute = ComputeConfig(kernel=kernel, precision=precision)

    def loss(arguments):
        results = unroll_layer(*arguments, compute=compute)
        products = jax.tree.map(lambda a, b: (a * b).sum(), results, weights)
        return sum(jax.tree.leaves(products)), results

    return jax.grad(loss, has_aux=True)(arguments)


def assert_same(actual, expected, tolerance):
    def same(a, b):
        scale = max(float(jnp.abs(b).max()), 1.0)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    jax.tree.map(same, actual, expected)


@pytest.mark.parametrize(("dtype", "precision"), TOLERANCE)
@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17))
def test_kernel_matches_scan_in_values_and_gradients(
    dtype, precision, time, batch, features, hidden
):
    with jax.enable_x64(dtype == "float64"):
        example = make(time, batch, features, hidden, dtype)
        fast, readable = (
            jax.jit(functools.partial(values_and_gradients, kernel, precision))(*example)
            for kernel in ("xla", "scan")
        )
        assert_same(fast, readable, TOLERANCE[dtype, precision])


@pytest.mark.parametrize("hidden", [3, 128, 130])
def test_padding_to_whole_tiles_changes_neither_values_nor_gradients(float64, hidden):
    arguments, weights = make(4, 2, 3, hidden, "float64")

    def loss(layer, arguments):
        results = layer(*arguments)
        products = jax.tree.map(lambda a, b: (a * b).sum(), results, weights)
        return sum(jax.tree.leaves(products)), results

    padded, plain = (
        jax.jit(jax.grad(functools.partial(loss, layer), has_aux=True))(arguments)
        for layer in (padded_lstm_layer, lstm_layer)
    )
    assert_same(padded, plain, 1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_vmap_over_members_equals_each_member_alone(precision):
    members = [make(5, 2, 3, 4), make(5, 2, 3, 4)]
    members[1] = jax.tree.map(lambda x: -2 * x, members[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    run = functools.partial(values_and_gradients, "xla", precision)
    together = jax.jit(jax.vmap(run))(*stacked)
    for i, member in enumerate(members):
        alone = run(*member)
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-5)


def test_donated_buffers_change_nothing():
    example, weights = make(4, 2, 3, 5)
    run = functools.partial(values_and_gradients, "xla", "float32")
    expected = jax.jit(run)(example, weights)
    donated = jax.jit(run, donate_argnums=0)(jax.tree.map(jnp.copy, example), weights)
    assert_same(donated, expected, 1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sharded_batch_equals_the_whole_batch(precision):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    (params, inputs, state), weights = make(4, 2 * len(jax.devices()), 3, 5)
    by_batch = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P("data"))
    sharded = (params, jax.device_put(inputs, by_batch[0]), jax.device_put(state, by_batch[1]))
    run = jax.jit(functools.partial(values_and_gradients, "xla", precision))
    tolerance = TOLERANCE["float32", precision]
    assert_same(run(sharded, weights), run((params, inputs, state), weights), tolerance)


def test_backward_loop_carries_the_gradients_of_the_state_alone():
    example, weights = make(7, 2, 3, 128)
    jaxpr = jax.make_jaxpr(functools.partial(values_and_gradients, "xla", "float32"))(
        example, weights
    )
    carried = [
        [variable.aval.shape for variable in scan.outvars[: scan.params["num_carry"]]]
        for scan in scans(jaxpr.jaxpr)
    ]
    forward, backward = [(2, 128), (2, 128)], [(2, 512), (2, 128)]  # h and c; gates and c
    assert carried == [forward, backward]


def scans(jaxpr):
    """Every scan of a program, those inside of calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                yield from scans(inner.jaxpr)


def test_gates_saturate_without_overflow():
    (params, inputs, state), _ = make(3, 2, 4, 5)
    params = jax.tree.map(lambda x: 1e30 * x, params)
    outputs, final = lstm_layer(params, inputs, state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((outputs, final)))
