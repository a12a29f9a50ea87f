import re

import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest
from model_examples import model_of

from zaremba_jax.config import override
from zaremba_jax.evaluate import text_nll
from zaremba_jax.inference import neural_cache
from zaremba_jax.inference.neural_cache import CacheConfig, Memory, mix, neural_cache_nll
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK

VOCABULARY = 6
CONFIG = override(QUICK, layers=2, hidden_size=4, init_scale=0.9)
PARAMS = init_params(CONFIG.model, VOCABULARY, key=jax.random.key(0))
MODEL = model_of(PARAMS, CONFIG)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 30).astype(np.int32)


def by_the_paper(ids, window, theta, weight):
    """Section 3 of Grave et al. (2017), one word at a time, in NumPy."""
    params = jax.tree.map(np.asarray, PARAMS)
    state = [[np.zeros((1, 4)), np.zeros((1, 4))] for _ in params.layers]
    results = paper_model.run(params, ids[:-1, None], state)
    kept, nats = [], []
    for logits, output, word in zip(
        results.logits[:, 0], results.outputs[:, 0], ids[1:], strict=True
    ):
        p = np.exp(logits) / np.exp(logits).sum()
        if kept:
            cache = np.zeros(VOCABULARY)
            for past_output, past_word in kept[-window:]:
                cache[past_word] += np.exp(theta * output @ past_output)
            p = (1 - weight) * p + weight * cache / cache.sum()
        nats.append(-np.log(p[word]))
        kept.append((output, word))
    return nats


@pytest.mark.parametrize("window", [1, 7, 100])
def test_cache_is_the_papers(monkeypatch, window):
    monkeypatch.setattr(neural_cache, "TOKENS_AT_ONCE", 8)
    nll = neural_cache_nll(MODEL, IDS, CacheConfig(window=window, theta=2.0, weight=0.4))
    assert nll.shape == (29,)
    np.testing.assert_allclose(nll, by_the_paper(IDS, window, 2.0, 0.4), rtol=1e-4)


ZONEOUT = override(CONFIG, zoneout_hidden=0.5, zoneout_cell=0.3, precision="bfloat16")


@pytest.mark.parametrize("config", [CONFIG, ZONEOUT], ids=["plain", "zoneout in bfloat16"])
def test_cache_of_little_weight_is_the_model(config):
    model = model_of(PARAMS, config)
    nll = neural_cache_nll(model, IDS, CacheConfig(window=8, theta=1.0, weight=1e-7))
    np.testing.assert_allclose(nll, text_nll(model, IDS), rtol=1e-5)


def test_ids_of_one_byte_are_read_as_those_of_four():
    model = model_of(init_params(CONFIG.model, 256, key=jax.random.key(1)), CONFIG)
    ids = np.tile(np.array([255, 3, 255, 254], np.uint8), 3)
    config = CacheConfig(window=20, theta=1.0, weight=0.5)
    nll = neural_cache_nll(model, ids, config)
    np.testing.assert_array_equal(nll, neural_cache_nll(model, ids.astype(np.int32), config))


def test_memory_has_no_more_places_than_the_text():
    large, enough = (CacheConfig(window=n, theta=2.0, weight=0.4) for n in (10**15, len(IDS)))
    nll = neural_cache_nll(MODEL, IDS, large)
    np.testing.assert_array_equal(nll, neural_cache_nll(MODEL, IDS, enough))


def test_memory_decides_how_far_back_a_word_is_found():
    outputs = jax.random.normal(jax.random.key(0), (9, 4))
    nll, targets = jnp.ones(9), jnp.asarray(IDS[:9] % 3)
    memory = Memory(outputs=jnp.zeros((2, 4)), words=jnp.full(2, -1, jnp.int32))
    actual, expected = (
        mix(nll, outputs, targets, memory, CacheConfig(window=window, theta=1.0, weight=0.5))
        for window in (7, 2)
    )
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1].words, expected[1].words)
    np.testing.assert_array_equal(actual[1].outputs, expected[1].outputs)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"window": 0}, "cache_window=0: must be at least 1"),
        ({"theta": -1.0}, "cache_theta=-1.0: must be at least 0"),
        ({"weight": 0.0}, "cache_weight=0.0: must be above 0 and below 1"),
        ({"weight": 1.0}, "cache_weight=1.0: must be above 0 and below 1"),
    ],
    ids=str,
)
def test_cache_outside_its_limits_is_refused(setting, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        CacheConfig(**{"window": 5, "theta": 1.0, "weight": 0.5} | setting)


def test_text_without_a_prediction_or_of_another_vocabulary_is_refused():
    foreign = np.append(IDS, len(PARAMS.embedding))
    with pytest.raises(ValueError, match="encode the text with the model's own vocabulary"):
        neural_cache_nll(MODEL, foreign, CacheConfig(window=5, theta=1.0, weight=0.5))
    with pytest.raises(ValueError, match="1 tokens has nothing to predict"):
        neural_cache_nll(MODEL, IDS[:1], CacheConfig(window=5, theta=1.0, weight=0.5))


def test_empty_cache_forms_no_number_that_is_none():
    memory = Memory(jnp.zeros((4, 3)), jnp.full(4, neural_cache._EMPTY, jnp.int32))
    config = CacheConfig(window=4, theta=0.5, weight=0.5)
    with jax.debug_nans(True):
        nll, _ = mix(jnp.ones(2), jnp.ones((2, 3)), jnp.array([1, 1]), memory, config)
    assert nll[0] == 1


def test_memory_is_as_wide_as_the_last_layer():
    config = override(CONFIG, layers=3, output_size=3)
    model = model_of(init_params(config.model, VOCABULARY, key=jax.random.key(0)), config)
    nll = neural_cache_nll(model, IDS, CacheConfig(window=8, theta=1.0, weight=1e-7))
    np.testing.assert_allclose(nll, text_nll(model, IDS), rtol=1e-5)


def test_cache_of_any_theta_gives_numbers():
    memory = Memory(jnp.ones((2, 5)), jnp.array([1, 2], jnp.int32))
    config = CacheConfig(window=2, theta=1e38, weight=0.5)
    nll, _ = mix(jnp.ones(1), jnp.ones((1, 5)), jnp.array([1], jnp.int32), memory, config)
    assert np.isfinite(nll).all()
