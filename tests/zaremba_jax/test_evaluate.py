import dataclasses
import functools
from typing import Any, cast
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from model_examples import model_of

from zaremba_jax import evaluate
from zaremba_jax.array_types import HiddenState
from zaremba_jax.config import override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import monte_carlo_nll, nll_by_windows, perplexity, text_nll
from zaremba_jax.model import apply, init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import active_rates, drop_weights, expected_masks, sample_masks
from zaremba_jax.rnn import zero_state

VOCABULARY, UNROLL, LONGEST = 6, 4, 41
PLAIN = override(QUICK, layers=2, hidden_size=5, init_scale=0.9, unroll=UNROLL, dropout=0.0)
NOISY = override(PLAIN, dropout=0.5, word_dropout=0.25, zoneout_cell=0.5, dropconnect=0.5, l2=1.0)


@functools.cache
def params():
    return init_params(PLAIN.model, VOCABULARY, key=jax.random.key(0))


@functools.cache
def model():
    return model_of(params(), PLAIN)


def make_text(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


@jax.jit
def one_call(params, ids, masks):
    logits, _ = apply(params, ids[:-1, None], zero_state(params.layers, 1), masks)
    log_probabilities = jax.nn.log_softmax(logits[:, 0])
    return -jnp.take_along_axis(log_probabilities, ids[1:, None], axis=1)[:, 0]


def in_one_go(ids, masks=None):
    """The same predictions by one call of the model; what follows a text changes none of them."""
    padded = jnp.asarray(np.pad(ids, (0, LONGEST - len(ids))), jnp.int32)
    return np.asarray(one_call(params(), padded, masks))[: len(ids) - 1]


@pytest.fixture(scope="module")
def short_windows():
    """Windows so short that texts of a few words take several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "TOKENS_AT_ONCE", 8)
        yield


@pytest.mark.usefixtures("short_windows")
@given(st.integers(2, LONGEST), st.sampled_from([1, 3, 4]), st.sampled_from([np.uint8, np.int32]))
def test_text_of_any_length_is_read_as_stretches_each_with_its_state_carried_through(
    length, streams, dtype
):
    """One stretch, the reported protocol, is the whole text."""
    ids = make_text(length).astype(dtype)
    stretch = -(-(length - 1) // streams)
    expected = [
        in_one_go(ids[start : start + stretch + 1]) for start in range(0, length - 1, stretch)
    ]
    np.testing.assert_allclose(text_nll(model(), ids, streams), np.concatenate(expected), rtol=1e-5)


@given(st.integers(2, 99), st.integers(1, 9), st.integers(1, 20))
def test_every_pair_is_read_once_and_in_order_as_many_at_once_as_allowed(length, streams, at_once):
    """By a reader of no model: it returns each pair, and counts what it read in its state."""

    def read(inputs, targets, state):
        position = state[0].hidden[None, :] + np.arange(len(inputs))[:, None]
        assert len(inputs) * streams <= max(at_once, streams) < (len(inputs) + 1) * streams
        assert inputs.dtype == targets.dtype == np.int32  # one program for all texts
        after = jax.tree.map(lambda read: read + len(inputs), state)
        return np.stack([inputs, targets, position]), after

    ids, nothing = np.arange(length, dtype=np.uint8), cast(Any, np.zeros(streams, int))
    with mock.patch.object(evaluate, "TOKENS_AT_ONCE", at_once):
        inputs, targets, position = nll_by_windows(
            cast(Any, read), ids, streams, lambda _: (HiddenState(nothing),)
        )
    np.testing.assert_array_equal(inputs, ids[:-1])
    np.testing.assert_array_equal(targets, ids[1:])
    np.testing.assert_array_equal(position, ids[:-1] % -(-(length - 1) // streams))


@given(*2 * [arrays(np.float32, st.integers(1, 9), elements=st.floats(0, 30, width=32))])
def test_perplexity_of_two_texts_is_their_geometric_mean_by_tokens(one, other):
    of_both = perplexity(np.concatenate([one, other]))
    nats = len(one) * np.log(perplexity(one)) + len(other) * np.log(perplexity(other))
    np.testing.assert_allclose(np.log(of_both), nats / (len(one) + len(other)), atol=1e-12)


@pytest.mark.usefixtures("short_windows")
def test_zoneout_is_evaluated_under_its_expectation():
    config, ids = override(PLAIN, zoneout_hidden=0.25, zoneout_cell=0.5), make_text(21)
    nll = text_nll(model_of(params(), config), ids)
    np.testing.assert_allclose(nll, in_one_go(ids, expected_masks(config)), rtol=1e-5)
    assert not np.allclose(nll, text_nll(model(), ids), rtol=1e-2)


def sampled(config, ids, samples, key):
    """Nats of each token under each sample, [samples, N - 1], one window after another."""
    rates, nll = active_rates(config.regularizers), np.empty((samples, len(ids) - 1))
    column = jnp.asarray(ids)[:, None]
    model = jax.jit(apply)
    for sample in range(samples):
        state = zero_state(params().layers, 1)
        for index, start in enumerate(range(0, len(ids) - 1, UNROLL)):
            keys = jax.random.split(jax.random.fold_in(key, index), samples)
            mask_key, weight_key = jax.random.split(keys[sample])
            inputs = column[start : start + UNROLL]
            masks = sample_masks(config, rates, inputs, VOCABULARY, key=mask_key)
            noisy = drop_weights(rates, params(), key=weight_key)
            logits, state = model(noisy, inputs, state, masks)
            for t, scores in enumerate(np.asarray(logits[:, 0], np.float64)):
                probabilities = np.exp(scores) / np.exp(scores).sum()
                nll[sample, start + t] = -np.log(probabilities[ids[start + t + 1]])
    return nll


@pytest.mark.parametrize("samples", [1, 3])
def test_monte_carlo_averages_the_probabilities_of_samples_that_each_carry_their_state(samples):
    ids, key = make_text(3 * UNROLL + 1), jax.random.key(5)
    nll = monte_carlo_nll(model_of(params(), NOISY), ids, samples, key=key)
    sample_nll = sampled(NOISY, ids, samples, key)
    assert nll.shape == (len(ids) - 1,)
    np.testing.assert_allclose(nll, -np.log(np.exp(-sample_nll).mean(axis=0)), rtol=1e-5)


@pytest.mark.parametrize("length", [2, 5, 11])
@pytest.mark.parametrize("samples", [1, 4])
def test_monte_carlo_without_noise_is_the_reported_protocol(length, samples):
    ids = make_text(length)
    nll = monte_carlo_nll(model(), ids, samples, key=jax.random.key(0))
    np.testing.assert_allclose(nll, text_nll(model(), ids), rtol=1e-5)


def test_monte_carlo_is_decided_by_its_key():
    ids = make_text(9)
    first, repeat, other = (
        monte_carlo_nll(model_of(params(), NOISY), ids, 2, key=jax.random.key(key))
        for key in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, repeat)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("length", "samples", "reason"),
    [
        (1, 3, "1 tokens has nothing to predict; give at least 2"),
        (9, 0, "samples=0: must be at least 1"),
        (9, -2, "samples=-2: must be at least 1"),
    ],
)
def test_monte_carlo_refuses_what_it_cannot_average(length, samples, reason):
    with pytest.raises(ValueError, match=reason):
        monte_carlo_nll(
            model_of(params(), NOISY), make_text(length), samples, key=jax.random.key(0)
        )


def test_perplexity_is_the_exponential_of_the_mean_in_double_precision():
    assert perplexity(np.full(7, np.log(np.float32(50)))) == pytest.approx(50, rel=1e-6)
    # In float32 the running sum would stop growing at 2 ** 24.
    ones = np.ones(2**24 + 2**20, np.float32)
    assert perplexity(ones) == perplexity(jnp.asarray(ones)) == pytest.approx(np.e, rel=1e-9)
    assert perplexity(np.array([1e3])) == np.inf


@pytest.mark.parametrize("length", [0, 1])
def test_text_without_a_prediction_is_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens has nothing to predict; give at least"):
        text_nll(model(), make_text(length))


@pytest.mark.parametrize("ids", [np.array([0.9, 1.2]), np.array([True, False])], ids=str)
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(ValueError, match=r"ids of type .* and shape \(2,\): must be whole numbers"):
        text_nll(model(), ids)


@pytest.mark.parametrize("outside", [-1, VOCABULARY])
def test_ids_of_another_vocabulary_are_refused(outside):
    ids, key = np.append(make_text(5), outside), jax.random.key(0)
    reason = f"ids from .* for a vocabulary of {VOCABULARY}: encode the text with the model's own"
    with pytest.raises(ValueError, match=reason):
        text_nll(model(), ids)
    with pytest.raises(ValueError, match=reason):
        monte_carlo_nll(model(), ids, 1, key=key)


def test_model_whose_vocabulary_is_not_its_parameters_is_refused():
    other = dataclasses.replace(model(), vocabulary=Vocabulary(tuple("abc")))
    with pytest.raises(ValueError, match="a vocabulary of 3 for an embedding of 6 rows: make the"):
        text_nll(other, np.array([0, 1, 2]))


def test_no_stretch_is_refused():
    for streams in (0, -1):
        with pytest.raises(ValueError, match=f"streams={streams}: must be at least 1"):
            text_nll(model(), make_text(5), streams=streams)
