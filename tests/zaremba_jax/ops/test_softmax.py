import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layer_examples import assert_same

from zaremba_jax.config import ComputeConfig
from zaremba_jax.ops.softmax import logits, softmax_nll

TOLERANCE = {
    ("float64", "float32"): 1e-10,
    ("float32", "float32"): 1e-5,
    ("float32", "bfloat16"): 1e-2,
}


def make(time, batch, hidden, vocabulary, dtype="float32"):
    rng = np.random.default_rng([time, batch, hidden, vocabulary])
    params = (
        jnp.asarray(rng.normal(size=(hidden, vocabulary)), dtype),
        jnp.asarray(rng.normal(size=vocabulary), dtype),
    )
    targets = jnp.asarray(rng.integers(0, vocabulary, (time, batch)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(time, batch)), dtype)
    return params, jnp.asarray(rng.normal(size=(time, batch, hidden)), dtype), targets, weights


def gradients(nll, params, hidden, targets, weights):
    def loss(params, hidden):
        values = nll(params, hidden, targets)
        return (values * weights).sum(), values

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, hidden)


def by_autodiff(params, hidden, targets):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params[0], params[1], hidden), targets
    )


def fused(compute):
    return lambda params, hidden, targets: softmax_nll(
        params[0], params[1], hidden, targets, compute
    )


@pytest.mark.parametrize(("dtype", "precision"), TOLERANCE)
@settings(max_examples=3)
@example(1, 1, 1, 1, 0)
@example(5, 3, 4, 30, 7)
@given(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(1, 30), st.integers(0, 30)
)
def test_fused_loss_equals_optax_in_values_and_gradients_chunked_or_not(
    dtype, precision, time, batch, hidden, vocabulary, at_once
):
    with jax.enable_x64(dtype == "float64"):
        arguments = make(time, batch, hidden, vocabulary, dtype)
        compute = ComputeConfig(precision=precision, softmax_tokens=at_once)
        run = jax.jit(
            lambda *args: [gradients(nll, *args) for nll in (fused(compute), by_autodiff)]
        )
        actual, expected = run(*arguments)
        assert_same(actual, expected, TOLERANCE[dtype, precision], floor=1.0)


@pytest.mark.parametrize("at_once", [0, 1])
def test_loss_is_safe_for_large_logits(at_once):
    params = jnp.asarray([[1e4, 0.0, -1e4]]), jnp.zeros(3)
    hidden = jnp.ones((1, 2, 1))
    targets = jnp.asarray([[0, 1]], jnp.int32)
    loss = fused(ComputeConfig(softmax_tokens=at_once))
    ((d_weights, _), d_hidden), nll = gradients(loss, params, hidden, targets, jnp.ones((1, 2)))
    np.testing.assert_array_equal(nll, [[0, 1e4]])
    np.testing.assert_array_equal(d_weights, [[1, -1, 0]])
    np.testing.assert_array_equal(d_hidden[..., 0], [[0, 1e4]])


def test_bias_s_gradient_is_summed_in_float32_whatever_the_precision():
    tokens = 257  # halves add up to more than bfloat16 can hold
    params, hidden = (jnp.zeros((1, 2)), jnp.zeros(2)), jnp.ones((tokens, 1, 1))
    loss, targets = fused(ComputeConfig(precision="bfloat16")), jnp.zeros((tokens, 1), jnp.int32)
    ((_, d_bias), _), _ = gradients(loss, params, hidden, targets, jnp.ones((tokens, 1)))
    np.testing.assert_array_equal(d_bias, [-128.5, 128.5])


def temporary_bytes(tokens, vocabulary, at_once):
    params, hidden, targets, weights = make(tokens, 1, 4, vocabulary)
    compute = ComputeConfig(softmax_tokens=at_once)
    compiled = jax.jit(functools.partial(gradients, fused(compute))).lower(
        params, hidden, targets, weights
    )
    memory = compiled.compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def test_chunked_memory_does_not_grow_with_vocabulary_times_all_tokens():
    vocabulary, at_once = 5000, 16
    one_chunk = 4 * vocabulary * at_once
    short, long = (temporary_bytes(tokens, vocabulary, at_once) for tokens in (128, 1024))
    assert long - short < one_chunk
    assert temporary_bytes(1024, vocabulary, 0) > 1024 / at_once * one_chunk / 2 > long


@pytest.mark.parametrize("outside", [-1, 30])
def test_target_outside_the_vocabulary_is_nan(outside):
    params, hidden, targets, _ = make(2, 1, 4, 30)
    nll = softmax_nll(params[0], params[1], hidden, targets.at[1, 0].set(outside))
    np.testing.assert_array_equal(jnp.isnan(nll), [[False], [True]])
