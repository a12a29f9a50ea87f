import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax import evaluate
from zaremba_jax.config import ModelConfig
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.model import apply, init_params
from zaremba_jax.rnn import zero_state

VOCABULARY = 6
PARAMS = init_params(
    ModelConfig(layers=2, hidden_size=5, init_scale=0.9), VOCABULARY, key=jax.random.key(0)
)


def make_text(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.int32)


def in_one_go(ids):
    """The same predictions by one call of the model over the whole text."""
    column = jnp.asarray(ids)[:, None]
    logits, _ = apply(PARAMS, column[:-1], zero_state(PARAMS.layers, 1))
    log_probabilities = jax.nn.log_softmax(logits)
    return -np.take_along_axis(np.asarray(log_probabilities[:, 0]), ids[1:, None], axis=1)[:, 0]


@pytest.fixture
def short_windows(monkeypatch):
    """Windows so short that texts of a few words take several."""
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", 8)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 17, 40])
@pytest.mark.usefixtures("short_windows")
def test_reported_protocol_carries_state_from_the_first_token_to_the_last(length):
    ids = make_text(length)
    nll = text_nll(PARAMS, ids)
    assert nll.shape == (length - 1,)
    np.testing.assert_allclose(nll, in_one_go(ids), rtol=1e-5)


@pytest.mark.parametrize(("length", "streams"), [(41, 4), (42, 4), (40, 3), (5, 4), (2, 3)])
@pytest.mark.usefixtures("short_windows")
def test_estimate_counts_every_token_once_in_stretches_of_their_own(length, streams):
    ids = make_text(length)
    nll = text_nll(PARAMS, ids, streams)
    stretch = -(-(length - 1) // streams)
    expected = [
        in_one_go(ids[start : start + stretch + 1]) for start in range(0, length - 1, stretch)
    ]
    np.testing.assert_allclose(nll, np.concatenate(expected), rtol=1e-5)


@given(st.integers(2, 60), st.integers(1, 9))
def test_any_cut_makes_one_prediction_for_each_token_but_the_first(length, streams):
    uniform = jax.tree.map(jnp.zeros_like, PARAMS)
    nll = text_nll(uniform, make_text(length), streams)
    np.testing.assert_allclose(nll, np.full(length - 1, np.log(VOCABULARY)), rtol=1e-6)


def test_perplexity_is_the_exponential_of_the_mean_in_double_precision():
    assert perplexity(np.full(7, np.log(np.float32(50)))) == pytest.approx(50, rel=1e-6)
    # In float32 the running sum would stop growing at 2 ** 24.
    assert perplexity(np.ones(2**24 + 2**20, np.float32)) == pytest.approx(np.e, rel=1e-9)


@pytest.mark.parametrize("length", [0, 1])
def test_text_without_a_prediction_is_refused(length):
    with pytest.raises(ValueError, match=f"{length} tokens has nothing to predict; give at least"):
        text_nll(PARAMS, make_text(length))
