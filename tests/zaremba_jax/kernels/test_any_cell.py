import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layer_examples import (
    ADMITTED,
    assert_kernel_matches_scan,
    assert_same,
    carried,
    make,
    of_layer,
    values_and_gradients,
)

from zaremba_jax.array_types import LayerParams, RecurrentMasks
from zaremba_jax.config import ComputeConfig
from zaremba_jax.kernels.any_cell import cell_layer
from zaremba_jax.kernels.lstm import lstm_layer, lstm_layer_with, padded_lstm_layer, scan_loops

COMBINATIONS = [
    (cell, names)
    for cell, admitted in ADMITTED.items()
    for count in range(len(admitted) + 1)
    for names in itertools.combinations(admitted, count)
]


@pytest.mark.parametrize(("cell", "names"), COMBINATIONS)
def test_kernel_matches_scan_in_values_and_gradients_under_any_masks(float64, cell, names):
    layer = make(2, 2, 3, 5, "float64", cell, names)
    with jax.disable_jit():  # so that all combinations share compiled operations
        fast, readable = (
            values_and_gradients(ComputeConfig(kernel=kernel), *layer)
            for kernel in ("custom_vjp", "scan")
        )
    assert_same(fast, readable, 1e-10)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ADMITTED)
def test_kernel_matches_scan_in_single_precision_and_of_bfloat16_operands(cell, precision):
    layer = make(5, 3, 4, 6, "float32", cell, ADMITTED[cell])
    assert_kernel_matches_scan(layer, "float32", precision)


@settings(max_examples=2)
@example("lstm", 1, 1, 1, 1)
@example("gru", 1, 1, 1, 1)
@example("tanh", 9, 1, 17, 2)
@given(
    st.sampled_from(list(ADMITTED)),
    *(st.integers(1, 9), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17)),
)
def test_kernel_matches_scan_at_any_sizes(cell, time, batch, features, hidden):
    with jax.enable_x64(True):
        sizes = time, batch, features, hidden
        assert_kernel_matches_scan(make(*sizes, "float64", cell, ADMITTED[cell]), "float64")


KERNELS = {
    "lstm": lstm_layer,
    "padded": padded_lstm_layer,
    "other loops": functools.partial(lstm_layer_with, scan_loops()),
    "any cell": functools.partial(cell_layer, masks=RecurrentMasks()),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_second_bias_is_added_and_has_the_gradient_of_the_first(float64, kernel):
    (params, *others), _, weights = make(3, 2, 3, 5, "float64")
    weights_of_two, half = (params.input_weights, params.recurrent_weights), params.bias / 2
    two = LayerParams(*weights_of_two, bias=half, second_bias=half)
    run = jax.jit(functools.partial(of_layer, KERNELS[kernel]))
    (gradient, *d_others), results = run((params, *others), weights)
    (of_two, *d_others_of_two), results_of_two = run((two, *others), weights)
    expected = dataclasses.replace(gradient, second_bias=gradient.bias)
    assert_same((of_two, d_others_of_two, results_of_two), (expected, d_others, results), 1e-12)


@pytest.mark.parametrize("kernel", ["other loops", "any cell"])
def test_bias_s_gradient_is_summed_in_float32_whatever_the_precision(kernel):
    batch = 257  # which bfloat16 cannot hold
    example = make(1, batch, 1, 1)
    params, *others = jax.tree.map(jnp.zeros_like, example[0])
    layer = functools.partial(KERNELS[kernel], precision="bfloat16")
    (gradient, *_), _ = of_layer(layer, (params, *others), jax.tree.map(jnp.ones_like, example[2]))
    assert gradient.bias.tolist() == [0, 0, 0, batch]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_vmap_over_members_equals_each_member_alone(cell):
    members = [make(5, 2, 3, 4, cell=cell, names=ADMITTED[cell])] * 2
    members[1] = jax.tree.map(lambda x: x / 2, members[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    run = functools.partial(values_and_gradients, ComputeConfig())
    together = jax.jit(jax.vmap(run))(*stacked)
    alone = jax.jit(run)
    for i, member in enumerate(members):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone(*member), 1e-5)


@pytest.mark.parametrize("cell", ADMITTED)
def test_backward_loop_carries_the_gradients_of_the_state_alone(cell):
    (params, inputs, state), masks, weights = make(7, 2, 3, 5, cell=cell, names=ADMITTED[cell])
    of_the_state = [(2, 5) for _ in dataclasses.fields(state)]
    forward, backward = carried(((params, inputs, state), masks, weights))
    assert forward == backward == of_the_state
