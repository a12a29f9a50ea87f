import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zaremba_jax import train
from zaremba_jax.config import QUICK, override
from zaremba_jax.corpus import windows
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import init_train_state, train_step, train_windows, window_loss

VOCABULARY = 7
CONFIG = override(QUICK, layers=2, hidden_size=6, batch_size=3, unroll=4, epochs=9, dropout=0.5)


@pytest.fixture
def text():
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 3 * 4 * 5 + 3).astype(np.int32)
    return jnp.asarray(windows(ids, CONFIG.train.batch_size, CONFIG.train.unroll))


def fresh(text, config=CONFIG):
    return init_train_state(config, VOCABULARY, len(text))


def values(state):
    """All of a state as NumPy arrays, the key as numbers."""
    return jax.tree.map(np.array, dataclasses.replace(state, key=jax.random.key_data(state.key)))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, values(one), values(other))


def test_step_subtracts_the_clipped_gradient_times_the_rate(text):
    config = override(CONFIG, clip_norm=0.1, learning_rate=0.5, dropout=0.0)
    before = fresh(text, config)
    step = jax.jit(functools.partial(train_step, config, len(text)))
    after, nll = step(before, text[0])
    gradient, (expected_nll, rnn_state) = jax.jit(jax.grad(window_loss, has_aux=True))(
        before.params, text[0][:-1], text[0][1:], before.rnn_state, None
    )
    scale = 0.5 * 0.1 / optax.tree.norm(gradient)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - scale * g, rtol=1e-4, atol=1e-7),
        after.params,
        before.params,
        gradient,
    )
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-6)
    assert_close_trees(after.rnn_state, rnn_state)
    assert int(after.step) == 1


def assert_close_trees(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def test_chunks_of_any_length_give_the_same_run(text):
    whole, nll = train_windows(CONFIG, fresh(text), text, 2 * len(text))
    state, parts = fresh(text), []
    for count in (1, 3, 2 * len(text) - 4):
        state, part = train_windows(CONFIG, state, text, count)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts), nll, rtol=1e-5)
    assert_close_trees(state.params, whole.params)
    assert int(state.step) == int(whole.step) == 2 * len(text)


def test_windows_are_trained_on_in_the_order_of_the_text_and_state_is_zero_at_epoch_starts(text):
    config = override(CONFIG, learning_rate=1e-30, dropout=0.0)  # parameters stay as they are
    state = fresh(text, config)
    params = jax.tree.map(jnp.copy, state.params)
    _, nll = train_windows(config, state, text, 2 * len(text))
    evaluated, expected = jax.jit(window_loss), []
    for _ in range(2):
        rnn_state = zero_state(params.layers, config.train.batch_size)
        for window in text:
            _, (mean, rnn_state) = evaluated(params, window[:-1], window[1:], rnn_state, None)
            expected.append(mean)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert len(set(np.asarray(nll[: len(text)]).tolist())) == len(text)


def test_no_gradient_flows_from_a_window_to_the_one_before(text):
    config = override(CONFIG, dropout=0.0)
    state, _ = train_windows(config, fresh(text, config), text, 1)
    as_data = jax.tree.map(jnp.array, state.rnn_state)
    gradient, _ = jax.jit(jax.grad(window_loss, has_aux=True))(
        state.params, text[1][:-1], text[1][1:], as_data, None
    )
    norm = float(optax.tree.norm(gradient))
    scale = min(1.0, config.train.clip_norm / norm)
    expected = jax.tree.map(lambda p, g: np.array(p - scale * g), state.params, gradient)
    after, _ = train_windows(config, state, text, 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, expected
    )


def test_seed_decides_initial_values_and_masks(text):
    first, _ = train_windows(CONFIG, fresh(text), text, 3)
    again, _ = train_windows(CONFIG, fresh(text), text, 3)
    assert_same(first, again)
    other = override(CONFIG, seed=1)
    assert not np.array_equal(fresh(text, other).params.embedding, fresh(text).params.embedding)
    same_start = dataclasses.replace(fresh(text), key=fresh(text, other).key)
    different_masks, _ = train_windows(CONFIG, same_start, text, 3)
    assert not np.array_equal(different_masks.params.embedding, first.params.embedding)


def test_each_step_has_masks_of_its_own(text):
    config = override(CONFIG, learning_rate=1e-30)
    # Both are the first window of an epoch, so that only the masks can differ.
    state = fresh(text, config)
    losses = []
    jitted = jax.jit(functools.partial(train_step, config, len(text)))
    for step in (0, len(text)):
        at = dataclasses.replace(jax.tree.map(jnp.copy, state), step=jnp.asarray(step, jnp.int32))
        losses.append(float(jitted(at, text[0])[1]))
    assert losses[0] != losses[1]


def test_nothing_is_compiled_again_between_epochs(text, monkeypatch):
    traced = []

    def counting(*args):
        traced.append(args)
        return train_step(*args)

    monkeypatch.setattr(train, "train_step", counting)
    config = override(CONFIG, seed=123)  # not compiled by another test
    state = fresh(text, config)
    for _ in range(3):
        for count in (2, 2, len(text) - 4):
            state, _ = train_windows(config, state, text, count)
    assert len(traced) == 2  # a full chunk, and the last of an epoch


def test_state_s_buffers_are_given_up_to_the_result(text):
    state = fresh(text)
    train_windows(CONFIG, state, text, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_compiled_epoch_has_no_host_round_trip_and_no_float64(text):
    compiled = str(train_windows.lower(CONFIG, fresh(text), text, len(text)).compile().as_text())
    assert "while" in compiled
    for forbidden in ("infeed", "outfeed", "send(", "recv(", "callback", "f64["):
        assert forbidden not in compiled


def test_model_learns_a_text_that_repeats():
    ids = np.tile(np.arange(VOCABULARY), 60).astype(np.int32)
    text = jnp.asarray(windows(ids, 3, 4))
    config = override(CONFIG, dropout=0.0, hidden_size=16, epochs=40, constant_epochs=40)
    state = fresh(text, config)
    _, nll = train_windows(config, state, text, 40 * len(text))
    assert abs(float(nll[0]) - np.log(VOCABULARY)) < 0.2
    assert float(nll[-5:].mean()) < 0.05
