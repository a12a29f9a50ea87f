import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest
from model_examples import model_of

from zaremba_jax.config import override
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import text_nll
from zaremba_jax.inference import dynamic_evaluation
from zaremba_jax.inference.dynamic_evaluation import DynamicConfig, dynamic_nll, mean_squares
from zaremba_jax.model import Predictor, init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.rnn import zero_state

VOCABULARY = 4
CONFIG = override(QUICK, layers=1, hidden_size=2, init_scale=0.9)
PARAMS = init_params(CONFIG.model, VOCABULARY, key=jax.random.key(0))
MODEL = model_of(PARAMS, CONFIG)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 12).astype(np.int32)
SGD = DynamicConfig(rule="sgd", rate=0.7, decay=0.2, segment=3)
RMS = DynamicConfig(rule="rms", rate=0.05, decay=0.8, segment=3, epsilon=0.01)


def zeros():
    return [[np.zeros((1, 2)), np.zeros((1, 2))]]


def flat(params):
    """All numbers of a model as a vector, and a function that makes a model of such a vector."""
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def make(numbers):
        parts = zip(np.split(numbers, ends), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(like.shape) for part, like in parts])

    return np.concatenate([leaf.ravel() for leaf in leaves]), make


def nats(make, numbers, segment, state):
    """Nats of each word of a segment but the first, and the state after it, by `paper_model`."""
    results = paper_model.run(make(numbers), segment[:-1, None], state)
    return paper_model.nats(results.logits, segment[1:, None])[:, 0], results.state


def gradient(make, numbers, segment, state):
    """Gradient of the mean nats by finite differences."""
    result = np.empty_like(numbers)
    for n in range(len(numbers)):
        step = np.zeros_like(numbers)
        step[n] = 1e-5
        up, down = (nats(make, numbers + s, segment, state)[0].mean() for s in (step, -step))
        result[n] = (up - down) / 2e-5
    return result


def by_the_paper(config, squares):
    """Section 3 of Krause et al. (2018), in NumPy."""
    trained, make = flat(PARAMS)
    rate, pull = config.rate, config.decay
    if config.rule == "rms":
        rms = np.sqrt(squares)
        rate, pull = rate / (rms + config.epsilon), pull * np.minimum(rms / rms.mean(), 1 / pull)
    numbers, state, nll = trained.copy(), zeros(), []
    for start in range(0, len(IDS) - 1, config.segment):
        segment = IDS[start : start + config.segment + 1]
        g = gradient(make, numbers, segment, state)
        predicted, state = nats(make, numbers, segment, state)
        nll += predicted.tolist()
        numbers = numbers - rate * g + pull * (trained - numbers)
    return nll


@pytest.mark.parametrize(
    ("config", "at_once"), [(SGD, 6), (RMS, 6), (SGD, 2)], ids=["sgd", "rms", "long segments"]
)
def test_adapting_is_the_papers(monkeypatch, config, at_once):
    """In two calls, the last one padded; or in one for each segment, which alone is too long."""
    monkeypatch.setattr(dynamic_evaluation, "TOKENS_AT_ONCE", at_once)
    numbers, make = flat(PARAMS)
    squares = np.random.default_rng(1).uniform(0, 0.04, len(numbers))
    squares_tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make(squares))
    nll = dynamic_nll(MODEL, IDS, config, squares_tree)
    assert nll.shape == (11,)
    np.testing.assert_allclose(nll, by_the_paper(config, squares), rtol=1e-3)
    assert not np.allclose(nll, text_nll(MODEL, IDS), rtol=1e-2)


def test_mean_squares_are_of_each_windows_gradient_with_the_state_carried_on():
    windows = np.stack([IDS[0:4], IDS[3:7]])[..., None]
    numbers, make = flat(PARAMS)
    first = gradient(make, numbers, windows[0, :, 0], zeros())
    state = nats(make, numbers, windows[0, :, 0], zeros())[1]
    second = gradient(make, numbers, windows[1, :, 0], state)
    actual, _ = flat(mean_squares(MODEL, jnp.asarray(windows)))
    np.testing.assert_allclose(actual, (first**2 + second**2) / 2, rtol=2e-3, atol=1e-8)


ZONEOUT = override(CONFIG, zoneout_hidden=0.5, zoneout_cell=0.3, precision="bfloat16")


@pytest.mark.parametrize("config", [CONFIG, ZONEOUT], ids=["plain", "zoneout in bfloat16"])
def test_without_a_rate_nothing_adapts_and_the_trained_model_stays_whole(config):
    before, still = jax.tree.map(np.array, PARAMS), dataclasses.replace(SGD, rate=0.0)
    model = model_of(PARAMS, config)
    expected = text_nll(model, IDS)
    np.testing.assert_allclose(dynamic_nll(model, IDS, still), expected, rtol=1e-5)
    dynamic_nll(model, IDS, SGD)
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)


def test_mean_squares_are_of_the_model_as_it_is_evaluated():
    @jax.jit
    @jax.grad
    def derivative(params):
        evaluated = Predictor(params, compute=ZONEOUT.compute, masks=expected_masks(ZONEOUT))
        return evaluated.token_nll(window[:-1], window[1:], state)[0].mean()

    window, state = jnp.asarray(IDS[:, None]), zero_state(PARAMS.layers, 1)
    expected = jax.tree.map(jnp.square, derivative(PARAMS))
    models = model_of(PARAMS, ZONEOUT), MODEL
    actual, plain = (mean_squares(model, window[None]) for model in models)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, actual, expected)
    assert not np.allclose(actual.embedding, plain.embedding, rtol=0.1)


def test_segment_longer_than_the_text_takes_no_more_than_the_text(monkeypatch):
    read, shapes = dynamic_evaluation._read, []

    def observed(trained, adapted, state, inputs, *more):
        shapes.append(inputs.shape)
        return read(trained, adapted, state, inputs, *more)

    monkeypatch.setattr(dynamic_evaluation, "_read", observed)
    nll = dynamic_nll(MODEL, IDS, dataclasses.replace(SGD, segment=1000))
    np.testing.assert_allclose(nll, text_nll(MODEL, IDS), rtol=1e-5)  # no step before the end
    assert shapes == [(1, len(IDS) - 1, 1)]


def test_ids_of_any_type_are_read_alike():
    nll = dynamic_nll(MODEL, IDS.astype(np.uint8), SGD)
    np.testing.assert_array_equal(nll, dynamic_nll(MODEL, IDS, SGD))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"rate": -1.0}, "dynamic_rate=-1.0: must be at least 0"),
        ({"rule": "rms", "epsilon": 1e-50}, "dynamic_epsilon=1e-50: must be at least 1.2e-38"),
        ({"rate": 1e39}, "dynamic_rate=1e+39: must be finite in float32 and at least 0"),
        ({"decay": 1.5}, "dynamic_decay=1.5: must be at least 0 and at most 1"),
        ({"segment": 0}, "dynamic_segment=0: must be at least 1"),
        ({"rule": "rms", "epsilon": 0.0}, "dynamic_epsilon=0.0: must be at least 1.2e-38"),
        ({"rule": "rms", "epsilon": float("nan")}, "dynamic_epsilon=nan: must be finite"),
        ({"epsilon": -1.0}, "dynamic_epsilon=-1.0: must be at least 0"),
    ],
    ids=str,
)
def test_settings_outside_their_limits_are_refused(setting, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        DynamicConfig(**{"rule": "sgd", "rate": 0.1, "decay": 0.0} | setting)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"rule": "SGD"}, "dynamic_rule='SGD': must be one of sgd, rms"),
        ({"segment": 2.5}, "dynamic_segment=2.5: must be a whole number"),
    ],
    ids=str,
)
def test_setting_of_another_kind_is_refused(setting, reason):
    unchecked: Any = object.__new__(DynamicConfig)  # as if annotations were not checked
    given = {"rule": "sgd", "rate": 0.1, "decay": 0.0, "epsilon": 0.1, "segment": 5} | setting
    for name, value in given.items():
        object.__setattr__(unchecked, name, value)
    with pytest.raises(ValueError, match=re.escape(reason)):
        unchecked.__post_init__()


def test_ids_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="ids from 0 to 4 for a vocabulary of 4: encode the text"):
        dynamic_nll(MODEL, np.append(IDS, VOCABULARY), SGD)
    with pytest.raises(ValueError, match="ids from 1 to 4 for a vocabulary of 4: encode the text"):
        mean_squares(MODEL, jnp.arange(1, 1 + VOCABULARY).reshape(1, 2, 2))


def test_rule_rms_without_squares_is_refused():
    with pytest.raises(
        InputError,
        match=r"the rule rms needs the mean squares of gradients.*; give them, or use sgd",
    ):
        dynamic_nll(MODEL, IDS, RMS)


def test_layers_that_share_the_expectation_of_zoneout_adapt_too():
    config = override(ZONEOUT, layers=2)
    model = model_of(init_params(config.model, VOCABULARY, key=jax.random.key(0)), config)
    still = dataclasses.replace(SGD, rate=0.0)
    np.testing.assert_allclose(dynamic_nll(model, IDS, still), text_nll(model, IDS), rtol=1e-5)
