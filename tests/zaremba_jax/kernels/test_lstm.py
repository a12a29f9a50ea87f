import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invoke import run_on_devices
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from layer_examples import (
    TOLERANCE,
    assert_kernel_matches_scan,
    assert_same,
    carried,
    make,
    of_layer,
    values_and_gradients,
)

from zaremba_jax.array_types import LSTMState
from zaremba_jax.config import ComputeConfig
from zaremba_jax.kernels.lstm import STEPS_PER_PASS, lstm_layer, padded_lstm_layer


@pytest.mark.parametrize(("dtype", "precision"), TOLERANCE)
@settings(max_examples=2)
@example(1, 1, 1, 1)
@example(9, 1, 17, 2)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17))
def test_kernel_matches_scan_in_values_and_gradients(
    dtype, precision, time, batch, features, hidden
):
    with jax.enable_x64(dtype == "float64"):
        layer = make(time, batch, features, hidden, dtype)
        assert_kernel_matches_scan(layer, dtype, precision)


@pytest.mark.parametrize(
    ("hidden", "time"), [(3, 4), (128, 2 * STEPS_PER_PASS), (130, STEPS_PER_PASS + 2)]
)
def test_tiles_and_steps_in_a_pass_change_neither_values_nor_gradients(float64, hidden, time):
    arguments, _, weights = make(time, 2, 3, hidden, "float64")
    layers = padded_lstm_layer, lstm_layer
    run = jax.jit(lambda *args: [of_layer(layer, *args) for layer in layers])
    padded, plain = run(arguments, weights)
    assert_same(padded, plain, 1e-12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_vmap_over_members_equals_each_member_alone(precision):
    members = [make(5, 2, 3, 4), make(5, 2, 3, 4)]
    members[1] = jax.tree.map(lambda x: -2 * x, members[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    run = functools.partial(values_and_gradients, ComputeConfig(precision=precision))
    together, alone = jax.jit(jax.vmap(run))(*stacked), jax.jit(run)
    for i, member in enumerate(members):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone(*member), 1e-5)


def assert_sharded_equals_whole():
    """What the test below runs in a process with four devices."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    (params, inputs, state), _, weights = make(4, 2 * mesh.size, 3, 5)
    by_batch = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P("data"))
    sharded = (params, jax.device_put(inputs, by_batch[0]), jax.device_put(state, by_batch[1]))
    for precision in ("float32", "bfloat16"):
        layer = functools.partial(lstm_layer, precision=precision)
        run = jax.jit(functools.partial(of_layer, layer))
        _, (outputs, _) = results = run(sharded, weights)
        assert len(outputs.sharding.device_set) == 4
        assert not outputs.sharding.is_fully_replicated
        tolerance = TOLERANCE["float32", precision]
        assert_same(results, run((params, inputs, state), weights), tolerance)


@pytest.mark.slow
def test_sharded_batch_equals_the_whole_batch():
    run_on_devices(4, assert_sharded_equals_whole)


def test_backward_loop_carries_the_gradients_of_the_state_alone():
    forward, backward = [(2, 128), (2, 128)], [(2, 512), (2, 128)]  # h and c; gates and c
    assert carried(make(7, 2, 3, 128)) == 2 * [forward] + 2 * [backward]  # NVIDIA's, others'


def test_gates_saturate_without_overflow():
    (params, inputs, state), *_ = make(3, 2, 4, 5)
    params = jax.tree.map(lambda x: 1e30 * x, params)
    assert isinstance(state, LSTMState)
    results = lstm_layer(params, inputs, state)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(results))
