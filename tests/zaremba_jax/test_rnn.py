import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layer_examples import ADMITTED, make

from zaremba_jax.array_types import (
    CellName,
    HiddenState,
    LSTMState,
    Masks,
    RecurrentMasks,
)
from zaremba_jax.cells import CELLS, project_inputs, step
from zaremba_jax.config import ComputeConfig
from zaremba_jax.rnn import deep_rnn, drop, unroll_layer, zero_state

pytestmark = pytest.mark.usefixtures("float64")

FEATURES, HIDDEN = 3, 4


def example_of(layers=2, time=6, batch=3, cell: CellName = "lstm") -> Any:
    """Random layers, inputs, a state, and masks of inputs and through time, in float64."""
    rng = np.random.default_rng(0)

    def factors(size=HIDDEN):
        return jnp.asarray(2.0 * rng.integers(0, 2, (time, batch, size)))

    sizes = (FEATURES,) + (HIDDEN,) * (layers - 1)
    examples = [
        make(time, batch, size, HIDDEN, "float64", cell, seed=(depth,))[0]
        for depth, size in enumerate(sizes)
    ]
    params, (inputs, *_), state = zip(*examples, strict=True)
    recurrent = tuple(
        RecurrentMasks(**{name: factors() / 2 for name in ADMITTED[cell]}) for _ in sizes
    )
    masks = Masks(inputs=tuple(map(factors, sizes)), recurrent=recurrent)
    return params, inputs, state, masks


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), actual, expected
    )


@settings(max_examples=2)
@example(2, 3, 2, "lstm", "custom_vjp", True)
@example(3, 4, 1, "gru", "custom_vjp", True)
@example(2, 3, 2, "tanh", "scan", True)
@example(2, 3, 2, "gru", "custom_vjp", False)
@given(
    *(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3)),
    *(st.sampled_from(list(CELLS)), st.sampled_from(["custom_vjp", "scan"]), st.booleans()),
)
def test_layer_major_order_equals_stepping_all_layers_in_a_loop(
    layers, time, batch, cell, kernel, masked
):
    with jax.enable_x64(True):  # hypothesis and function-scoped fixtures do not mix
        params, inputs, state, masks = example_of(layers, time, batch, cell)
        masks = masks if masked else Masks()
        outputs, final = deep_rnn(params, inputs, state, masks, ComputeConfig(kernel=kernel))
        looped, current = [], list(state)
        inputs_masks: Any = masks.inputs
        for t in range(time):
            x = inputs[t]
            for depth, layer in enumerate(params):
                x = x * inputs_masks[depth][t] if inputs_masks else x
                recurrent = masks.recurrent[depth] if masks.recurrent else RecurrentMasks()
                recurrent = jax.tree.map(lambda mask, t=t: mask[t], recurrent)
                current[depth] = step(layer, project_inputs(layer, x), current[depth], recurrent)
                x = current[depth].hidden
            looped.append(x)
        assert_close(outputs, jnp.stack(looped))
        assert_close(final, tuple(current))


def test_dropout_never_touches_the_recurrent_path():
    params, inputs, state, masks = example_of()
    nothing_enters = Masks(inputs=tuple(map(jnp.zeros_like, masks.inputs)))
    _, final = deep_rnn(params, inputs, state, nothing_enters)
    for layer, before, after in zip(params, state, final, strict=True):
        h, c = np.asarray(before.hidden), np.asarray(before.cell)
        for _ in range(len(inputs)):
            gates = h @ np.asarray(layer.recurrent_weights) + np.asarray(layer.bias)
            f, i, o = (1 / (1 + np.exp(-g)) for g in np.split(gates, 4, axis=1)[:3])
            c = f * c + i * np.tanh(np.split(gates, 4, axis=1)[3])
            h = o * np.tanh(c)
        assert_close(after, LSTMState(jnp.asarray(h), jnp.asarray(c)))
        assert not np.allclose(after.hidden, before.hidden)


def test_masks_of_a_layer_touch_it_and_those_above_it_alone():
    params, inputs, state, masks = example_of()

    def final_states(changed) -> Any:
        return deep_rnn(params, inputs, state, changed)[1]

    base = final_states(masks)
    for kind in ("inputs", "recurrent"):
        for depth in range(2):
            changed = list(getattr(masks, kind))
            changed[depth] = jax.tree.map(lambda mask: 1.5 - mask, changed[depth])
            states = final_states(dataclasses.replace(masks, **{kind: tuple(changed)}))
            differs = [
                not np.array_equal(a.cell, b.cell) for a, b in zip(base, states, strict=True)
            ]
            assert differs == [below >= depth for below in range(2)]


def test_outputs_are_raw_whatever_the_output_mask():
    params, inputs, state, masks = example_of()
    dropped = dataclasses.replace(masks, output=jnp.zeros((6, 3, HIDDEN)))
    assert_close(deep_rnn(params, inputs, state, dropped), deep_rnn(params, inputs, state, masks))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernel", ["custom_vjp", "scan"])
def test_masks_that_change_nothing_equal_no_masks(cell, kernel):
    params, inputs, state, masks = example_of(cell=cell)
    neutral = {"zoneout_hidden": 0.0, "zoneout_cell": 0.0}
    names = ADMITTED[cell]
    layer = RecurrentMasks(**{n: jnp.full((1, 1, 1), neutral.get(n, 1.0)) for n in names})
    ones = Masks(inputs=jax.tree.map(jnp.ones_like, masks.inputs), recurrent=(layer, layer))
    compute = ComputeConfig(kernel=kernel)
    assert_close(
        deep_rnn(params, inputs, state, ones, compute),
        deep_rnn(params, inputs, state, None, compute),
    )


def test_drop_multiplies_by_its_mask_and_none_drops_nothing():
    x = jnp.arange(12.0).reshape(2, 2, 3)
    mask = jnp.asarray([[[2.0, 0.0, 2.0]]])
    np.testing.assert_array_equal(drop(x, mask)[1, 1], [18, 0, 22])
    np.testing.assert_array_equal(drop(x, None), x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("cell", "record"), [("lstm", LSTMState), ("gru", HiddenState), ("tanh", HiddenState)]
)
def test_zero_state_has_a_record_a_layer_of_the_weights_type(cell, record, dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), example_of(layers=3, cell=cell)[0])
    state = zero_state(params, batch_size=5)
    assert [type(layer) for layer in state] == [record] * 3
    for part in jax.tree.leaves(state):
        np.testing.assert_array_equal(part, np.zeros((5, HIDDEN)))
        assert part.dtype == dtype


@pytest.mark.parametrize("kernel", ["custom_vjp", "scan"])
@pytest.mark.parametrize("cell", CELLS)
def test_layer_of_two_biases_is_that_of_their_sum_with_a_gradient_for_each(cell, kernel):
    (layer, *_), inputs, (state, *_), _ = example_of(cell=cell)
    two = dataclasses.replace(layer, bias=layer.bias / 4, second_bias=layer.bias * 3 / 4)

    def total(params):
        return unroll_layer(params, inputs, state, compute=ComputeConfig(kernel=kernel))[0].sum()

    value, gradient = jax.value_and_grad(total)(two)
    expected, by_sum = jax.value_and_grad(total)(layer)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient.bias, by_sum.bias, rtol=1e-12)
    np.testing.assert_allclose(gradient.second_bias, by_sum.bias, rtol=1e-12)


@pytest.mark.parametrize("kernel", ["custom_vjp", "scan"])
@pytest.mark.parametrize("cell", CELLS)
def test_inputs_of_another_type_are_converted_and_have_a_gradient_of_it(cell, kernel):
    params, inputs, state, _ = example_of(cell=cell)
    narrow = inputs.astype(jnp.bfloat16)

    def total(inputs):
        compute = ComputeConfig(kernel=kernel)
        outputs, _ = unroll_layer(params[0], inputs, state[0], compute=compute)
        return outputs.sum()

    gradient = jax.grad(total)(narrow)
    assert gradient.dtype == jnp.bfloat16
    expected = jax.grad(total)(narrow.astype(inputs.dtype))
    np.testing.assert_array_equal(gradient, expected.astype(jnp.bfloat16))
