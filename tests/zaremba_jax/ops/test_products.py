import dataclasses
import functools
import itertools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layer_examples import equations, make, values_and_gradients
from model_examples import model_of

from experiments.compilers import hlo
from zaremba_jax.cells import CELLS
from zaremba_jax.config import ComputeConfig, override
from zaremba_jax.data.windows import windows
from zaremba_jax.evaluate import monte_carlo_nll, text_nll
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.model import Predictor, apply, init_params, softmax_weights
from zaremba_jax.ops import products
from zaremba_jax.ops.products import (
    as_bits,
    dot_few_rows,
    from_bits,
    matmul,
    operand,
    weight_gradient,
)
from zaremba_jax.ops.softmax import logits, softmax_nll
from zaremba_jax.parallel.members import members_nll
from zaremba_jax.parallel.mesh import make_mesh
from zaremba_jax.presets import QUICK
from zaremba_jax.rnn import unroll_layer, zero_state
from zaremba_jax.train import init_train_state, train_windows

sizes = st.integers(1, 9)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rounded(x):
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


@jax.jit
def product_and_gradients(x, weights, g):
    product, pullback = jax.vjp(lambda x, w: matmul(x, w, "bfloat16"), x, weights)
    return product, *pullback(g)


@settings(max_examples=5)
@example(1, 1, 1, 1)
@given(sizes, sizes, sizes, sizes)
def test_bfloat16_rounds_the_operands_and_nothing_else(time, batch, inner, outer):
    x, weights, g = (
        normal(0, time, batch, inner),
        normal(1, inner, outer),
        normal(2, time, batch, outer),
    )
    product, d_x, d_weights = product_and_gradients(x, weights, g)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    assert_close(product, rounded(x) @ rounded(weights))
    assert_close(d_x, rounded(g) @ rounded(weights).T)
    flat_x, flat_g = rounded(x).reshape(-1, inner), rounded(g).reshape(-1, outer)
    assert_close(d_weights, flat_x.T @ flat_g)
    assert product.dtype == d_x.dtype == d_weights.dtype == jnp.float32


def results(compute):
    """Results of products in every part of a model."""
    params = init_params(override(QUICK, hidden_size=4).model, 7, key=jax.random.key(0))
    softmax = softmax_weights(params), params.softmax.bias
    tokens, hidden = jnp.arange(6).reshape(3, 2), normal(0, 3, 2, 4)

    def loss(softmax, hidden):
        return softmax_nll(softmax[0], softmax[1], hidden, tokens, compute).sum()

    outputs = {
        "loss": loss(softmax, hidden),
        "its gradients": jax.grad(loss, argnums=(0, 1))(softmax, hidden),
        "logits": logits(softmax[0], softmax[1], hidden, compute),
        "model": apply(params, tokens, zero_state(params.layers, 2), compute=compute)[0],
    }
    for cell in CELLS:
        for names in ((), ("hidden",)):
            layer = make(3, 2, 4, 4, "float32", cell, names)
            for kernel in ("custom_vjp", "scan"):
                config = dataclasses.replace(compute, kernel=kernel)
                outputs[f"{kernel} {cell} {names}"] = values_and_gradients(config, *layer)
    return outputs


def test_every_part_of_a_model_has_the_precision_that_is_asked_for():
    run = jax.jit(results, static_argnums=0)
    exact, rounded = (run(ComputeConfig(precision=p)) for p in ("float32", "bfloat16"))
    for name, part in exact.items():
        pairs = zip(jax.tree.leaves(part), jax.tree.leaves(rounded[name]), strict=True)
        assert all(1e-6 < abs(a - b).max() < 0.1 for a, b in pairs), name


@pytest.mark.parametrize("kernel", ["custom_vjp", "scan", "pallas"])
@pytest.mark.parametrize("masks", [None, ("hidden",)], ids=["no masks", "masks"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_product_of_a_layer_is_of_the_precision_forward_and_backward(cell, masks, kernel):
    run = functools.partial(
        values_and_gradients, ComputeConfig(kernel=kernel, precision="bfloat16")
    )
    program = jax.make_jaxpr(run)(*make(3, 2, 4, 5, "float32", cell, masks))
    products = list(equations(program.jaxpr, "dot_general"))
    assert len(products) >= 6  # of inputs and of h, forward and for two gradients each
    types = {operand.aval.dtype for product in products for operand in product.invars}
    assert types == {jnp.dtype("bfloat16")}


def test_sums_longer_than_bfloat16_can_count_keep_every_term():
    ones = jnp.ones((1, 1000))
    assert float(matmul(ones, ones.T, "bfloat16")[0, 0]) == 1000
    total = jax.grad(lambda w: matmul(ones.T, w, "bfloat16").sum())(jnp.zeros((1, 1)))
    assert float(total[0, 0]) == 1000


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weight_gradient_sums_outer_products_over_all_leading_axes(dtype):
    x, g = normal(0, 3, 4, 5).astype(dtype), normal(1, 3, 4, 6).astype(dtype)
    expected = np.einsum("tbi,tbo->io", np.asarray(x, np.float64), np.asarray(g, np.float64))
    np.testing.assert_allclose(weight_gradient(x, g), expected, rtol=1e-5, atol=1e-5)


def test_float32_leaves_double_precision_as_it_is(float64):
    x, weights = normal(0, 2, 3).astype(jnp.float64), normal(1, 3, 4).astype(jnp.float64)
    expected = np.asarray(x) @ np.asarray(weights)
    np.testing.assert_allclose(matmul(x, weights, "float32"), expected, rtol=1e-14)
    with pytest.raises(
        ValueError, match=r"precision=bfloat16: is for float32 values.* turn jax_enable_x64 off"
    ):
        matmul(x, weights, "bfloat16")


# What turns the products of few rows in bfloat16 around on a CPU, and what turns none.
ALWAYS, NEVER = (0, 0), (2**31, 2**31)


@pytest.mark.parametrize(
    ("precision", "turned_from"), [("float32", NEVER), ("bfloat16", NEVER), ("bfloat16", ALWAYS)]
)
@pytest.mark.parametrize("contract", [0, 1])
@settings(max_examples=3)
@example(1, 1, 1)
@given(sizes, sizes, sizes)
def test_product_of_few_rows_is_the_product(precision, turned_from, contract, batch, inner, outer):
    @jax.jit
    def operands_and_product(rows, weights):
        rows, weights = operand(rows, precision), operand(weights, precision)
        stored = weights if contract == 0 else weights.T
        return rows, weights, dot_few_rows(rows, stored, contract=contract)

    factors = normal(0, batch, inner), normal(1, inner, outer)
    with mock.patch.object(products, "TURNED_FROM", turned_from):
        rows, weights, product = operands_and_product(*factors)
    expected = np.asarray(rows, np.float64) @ np.asarray(weights, np.float64)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_loop_over_time_turns_no_weights_around(precision, monkeypatch):
    hidden = 64
    monkeypatch.setattr(products, "TURNED_FROM", ALWAYS)

    @jax.jit
    def loop(h, weights):
        weights = operand(weights, precision)

        def step(h, _):
            return jnp.tanh(dot_few_rows(operand(h, precision), weights)), None

        return jax.lax.scan(step, h, length=5)[0]

    program = hlo.parse(
        loop.lower(normal(0, 2, hidden), normal(1, hidden, hidden)).compile().as_text()
    )
    (body,) = (loop.body for loop in program.loops())
    written = [line.results[0] for line in program.kernels(body)]
    assert written
    # A copy of the weights may lie there as one axis.
    assert max(math.prod(result.shape) for result in written) < hidden * hidden


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_a_loop_keeps_as_bits_comes_back_whole(dtype):
    x = normal(0, 3, 4).astype(dtype)
    kept = as_bits(x)
    assert kept.dtype == ("uint16" if dtype == "bfloat16" else dtype)
    back = from_bits(kept)
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


def test_derivative_of_a_gradient_in_bfloat16_is_refused_rather_than_taken_for_zero():
    layer, _, _ = make(3, 2, 3, 5)

    def squares(state, precision):
        compute = ComputeConfig(precision=precision)

        def loss(inputs):
            return unroll_layer(layer[0], inputs, state, compute=compute)[0].sum()

        return (jax.grad(loss)(layer[1]) ** 2).sum()

    second = jax.jit(jax.grad(squares), static_argnums=1)
    assert np.abs(second(layer[2], "float32").hidden).max() > 0
    with pytest.raises(ValueError, match=r"precision=bfloat16: .* use precision=float32"):
        second(layer[2], "bfloat16")


IDS = np.arange(41, dtype=np.int32) * 3 % 7


def read_and_trained(precision):
    """Nats from everything that reads a text, and from training, in a precision."""
    config = override(
        QUICK,
        **{"layers": 1, "hidden_size": 8, "batch_size": 2, "unroll": 4, "init_scale": 0.5},
        dropout=0.0,
        precision=precision,
    )
    state, compute = init_train_state(config, 7), config.compute
    params = jax.tree.map(jnp.copy, state.params)  # the state is donated
    stacked, mesh = jax.tree.map(lambda x: x[None], params), make_mesh(jax.devices()[:1])
    model = model_of(params, config)
    return {
        "text": text_nll(model, IDS),
        "ensemble": members_nll(Predictor(stacked, None, compute), IDS, 1, mesh)[0],
        "samples": monte_carlo_nll(model, IDS, 1, key=jax.random.key(0)),
        "lines": lines_nll(model, [IDS], 0)[0],
        "training": train_windows(config, state, jnp.asarray(windows(IDS, 2, 4)))[1].nll,
    }


def test_precision_of_a_run_is_that_of_its_training_and_of_all_that_reads_a_text():
    exact, rounded = map(read_and_trained, ("float32", "bfloat16"))
    for name, nats in exact.items():
        assert 1e-5 < np.abs(nats - rounded[name]).max() < 0.05, name


# Settings that change what is multiplied, or how it lies in memory.
OPERANDS = {
    "tie_weights": True,
    "output_size": 32,
    "embedding_size": 32,
    "cell": "gru",
    "kernel": "scan",
    "softmax_tokens": 64,
    "dropconnect": 0.5,
    "hidden_dropout": 0.25,
}


@functools.cache
def types_of_factors(**settings):
    """The types of all that a training step multiplies, as compiled here."""
    config = override(QUICK, hidden_size=32, precision="bfloat16", **settings)
    state = jax.eval_shape(lambda: init_train_state(config, 60))
    tokens = jax.ShapeDtypeStruct((2, config.train.unroll + 1, config.train.batch_size), jnp.int32)
    program = train_windows.lower(config, state, tokens).compile().as_text() or ""
    types = dict(re.findall(r"^ *(?:ROOT )?(%\S+) = (\w+)\[", program, re.MULTILINE))
    pairs = re.findall(r" dot\((%[^ ,]+), (%[^ ,]+)\)", program)
    return {types[factor] for factors in pairs for factor in factors}


@pytest.mark.parametrize("name", OPERANDS)
def test_no_setting_makes_the_compiler_multiply_in_another_precision(name):
    """XLA takes float32 where it has no product in bfloat16, and does not say so.

    A processor without such instructions multiplies in float32 either way.
    """
    assert types_of_factors(**{name: OPERANDS[name]}) == types_of_factors() != set()


def test_products_that_are_turned_around_are_in_the_same_precision(monkeypatch):
    monkeypatch.setattr(products, "TURNED_FROM", ALWAYS)
    assert types_of_factors(seed=1) == types_of_factors()  # of another seed: traced anew


def trains_and_reads(**settings):
    sizes = {"layers": 1, "hidden_size": 32, "batch_size": 8, "unroll": 10}
    config = override(QUICK, **sizes, **settings)
    ids = np.random.default_rng(0).integers(0, 60, 200)
    state = init_train_state(config, 60)
    state, statistics = train_windows(config, state, jnp.asarray(windows(ids, 8, 10)))
    assert np.isfinite(np.asarray(statistics.nll)).all()
    assert np.isfinite(text_nll(model_of(state.params, config), ids, streams=4)).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("names", list(itertools.combinations(OPERANDS, 2)), ids="-".join)
def test_pairs_of_settings_that_change_products_compile_as_for_a_user(names, precision):
    """With the compiler's optimizations on, which turn products around."""
    trains_and_reads(precision=precision, **{name: OPERANDS[name] for name in names})


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_products_that_are_turned_around_compile_as_for_a_user(cell, monkeypatch):
    monkeypatch.setattr(products, "TURNED_FROM", ALWAYS)
    trains_and_reads(cell=cell, precision="bfloat16", seed=1)
