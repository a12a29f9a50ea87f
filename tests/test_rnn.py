import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaremba_jax.array_types import DropoutMasks, LSTMParams, LSTMState
from zaremba_jax.cells import lstm_step, project_inputs
from zaremba_jax.rnn import deep_rnn, unroll_layer, zero_state

pytestmark = pytest.mark.usefixtures("float64")

HIDDEN = 4


def make(layers=2, time=6, batch=3, seed=0):
    """Layers, inputs, a state and masks, all random, float64."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    params = tuple(
        LSTMParams(
            input_weights=normal(HIDDEN, 4 * HIDDEN),
            recurrent_weights=normal(HIDDEN, 4 * HIDDEN),
            bias=normal(4 * HIDDEN),
        )
        for _ in range(layers)
    )
    state = tuple(
        LSTMState(hidden=normal(batch, HIDDEN), cell=normal(batch, HIDDEN)) for _ in range(layers)
    )
    sites = 2.0 * rng.integers(0, 2, (layers + 1, time, batch, HIDDEN))
    *inputs, output = map(jnp.asarray, sites)
    return params, normal(time, batch, HIDDEN), state, DropoutMasks(tuple(inputs), output)


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), actual, expected
    )


@settings(max_examples=8)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.booleans())
def test_layer_major_scan_equals_stepping_all_layers_in_a_loop(layers, time, batch, masked):
    with jax.enable_x64(True):  # hypothesis and function-scoped fixtures do not mix
        params, inputs, state, masks = make(layers, time, batch)
        outputs, final = deep_rnn(params, inputs, state, masks if masked else None)
        looped, current = [], list(state)
        for t in range(time):
            x = inputs[t]
            for depth, layer in enumerate(params):
                x = x * masks.inputs[depth][t] if masked else x
                projected = project_inputs(layer, x)
                current[depth] = lstm_step(layer.recurrent_weights, projected, current[depth])
                x = current[depth].hidden
            looped.append(x * masks.output[t] if masked else x)
        assert_close(outputs, jnp.stack(looped))
        assert_close(final, tuple(current))


@settings(max_examples=5)
@given(st.integers(1, 6), st.integers(1, 6))
def test_two_windows_with_carried_state_equal_one_long_window(first, second):
    with jax.enable_x64(True):
        params, inputs, state, masks = make(time=first + second)
        whole, final = deep_rnn(params, inputs, state, masks)
        cut_masks = [
            jax.tree.map(lambda m, s=s: m[s], masks) for s in (slice(first), slice(first, None))
        ]
        start, between = deep_rnn(params, inputs[:first], state, cut_masks[0])
        end, last = deep_rnn(params, inputs[first:], between, cut_masks[1])
        assert_close(jnp.concatenate([start, end]), whole)
        assert_close(last, final)


def test_dropout_never_touches_the_recurrent_path():
    params, inputs, state, masks = make()
    nothing_enters = DropoutMasks(
        inputs=tuple(map(jnp.zeros_like, masks.inputs)), output=jnp.zeros_like(masks.output)
    )
    outputs, final = deep_rnn(params, inputs, state, nothing_enters)
    np.testing.assert_array_equal(outputs, 0)
    for layer, before, after in zip(params, state, final, strict=True):
        h, c = np.asarray(before.hidden), np.asarray(before.cell)
        for _ in range(len(inputs)):
            gates = h @ np.asarray(layer.recurrent_weights) + np.asarray(layer.bias)
            f, i, o = (1 / (1 + np.exp(-g)) for g in np.split(gates, 4, axis=1)[:3])
            c = f * c + i * np.tanh(np.split(gates, 4, axis=1)[3])
            h = o * np.tanh(c)
        assert_close(after, LSTMState(jnp.asarray(h), jnp.asarray(c)))
        assert not np.allclose(after.hidden, before.hidden)


def test_each_input_mask_enters_its_own_layer_and_the_output_mask_none():
    params, inputs, state, masks = make()

    def final_states(changed):
        return deep_rnn(params, inputs, state, changed)[1]

    base = final_states(masks)
    for depth in range(2):
        changed_inputs = list(masks.inputs)
        changed_inputs[depth] = 2 - changed_inputs[depth]
        changed = final_states(DropoutMasks(tuple(changed_inputs), masks.output))
        differs = [not np.array_equal(a.cell, b.cell) for a, b in zip(base, changed, strict=True)]
        assert differs == [below >= depth for below in range(2)]
    assert_close(final_states(DropoutMasks(masks.inputs, 2 - masks.output)), base)


def test_masks_of_ones_equal_no_masks():
    params, inputs, state, masks = make()
    ones = jax.tree.map(jnp.ones_like, masks)
    assert_close(deep_rnn(params, inputs, state, ones), deep_rnn(params, inputs, state))


def test_zero_state_has_a_record_a_layer_of_the_weights_type():
    params, *_ = make(layers=3)
    state = zero_state(params, batch_size=5)
    assert len(state) == 3
    for record in state:
        np.testing.assert_array_equal(record.hidden, np.zeros((5, HIDDEN)))
        np.testing.assert_array_equal(record.cell, np.zeros((5, HIDDEN)))
        assert record.cell.dtype == jnp.float64


def test_last_output_of_a_layer_is_its_final_hidden_state():
    params, inputs, state, _ = make()
    outputs, final = unroll_layer(params[0], inputs, state[0])
    np.testing.assert_array_equal(outputs[-1], final.hidden)
