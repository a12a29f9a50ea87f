import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_examples import make

from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.inference.generation import (
    Sampling,
    filter_logits,
    generate,
    mixture_log_probs,
    sample_token,
    unknown_id,
)
from zaremba_jax.model import Predictor, apply
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.rnn import zero_state

WORDS = Vocabulary(tuple("abcdef"))
GREEDY = Sampling(temperature=0.0)
PROMPT = np.array([1, 4, 2], np.int32)


@functools.cache
def model(seed=0, hidden_size=4, cell="lstm", **changes):
    return make(seed, WORDS, hidden_size=hidden_size, cell=cell, init_scale=1.5, **changes)


def probabilities(one, ids):
    """Probabilities of every token after `ids`, by the paper's equations in NumPy."""
    params = jax.tree.map(np.asarray, one.params)
    parts = 2 if params.layers[0].cell == "lstm" else 1
    state = [[np.zeros((1, one.config.model.hidden_size))] * parts]
    logits = paper_model.run(params, np.array(ids)[:, None], state).logits[-1, 0]
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("count", [1, 2])
def test_each_token_is_the_most_probable_of_the_mean_of_the_models(count):
    models = [model(), model(1, 3, "gru")][:count]
    drawn = generate(models, PROMPT, 6, sampling=GREEDY, key=jax.random.key(0))
    assert drawn.shape == (1, 6)
    ids = PROMPT.tolist()
    for token in drawn[0].tolist():
        mean = np.mean([probabilities(one, ids) for one in models], axis=0)
        assert token == mean.argmax()
        ids.append(token)


def test_mixture_is_of_probabilities_and_not_of_logits():
    scores = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32) * 4
    probs = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(mixture_log_probs(jnp.asarray(scores))), probs.mean(axis=0), rtol=1e-5
    )


def test_text_does_not_depend_on_how_many_others_are_drawn_and_differs_from_them():
    one, many = (generate([model()], PROMPT, 12, n, key=jax.random.key(7)) for n in (1, 3))
    np.testing.assert_array_equal(one[0], many[0])
    assert len({tuple(text) for text in many.tolist()}) == 3
    assert generate([model()], PROMPT, 12, key=jax.random.key(8)).tolist() != one.tolist()


def test_text_ends_at_a_token_and_is_the_same_until_then():
    whole = generate([model()], PROMPT, 30, 3, key=jax.random.key(7))
    end = int(whole[0, 9])
    ended = generate([model()], PROMPT, 30, 3, key=jax.random.key(7), until=end)
    for text, row in zip(whole.tolist(), ended.tolist(), strict=True):
        place = [*text, end].index(end)
        assert row == text[:place] + [end] * (30 - place)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_k=2, top_p=0.9)])
def test_tokens_that_are_left_out_are_never_drawn(sampling):
    key = jax.random.key(0)
    often = generate([model()], PROMPT, 200, sampling=sampling, key=key)[0]
    never = tuple(set(often.tolist()))[:2]
    sampling = dataclasses.replace(sampling, never=never)
    assert not set(generate([model()], PROMPT, 200, sampling=sampling, key=key)[0]) & set(never)


def test_zoneout_is_on_by_its_expectation():
    zoned = model(zoneout_hidden=0.25, zoneout_cell=0.5)
    (drawn,) = generate([zoned], PROMPT, 20, sampling=GREEDY, key=jax.random.key(0))
    inputs = jnp.asarray([*PROMPT, *drawn[:-1]])[:, None]
    state = zero_state(zoned.params.layers, 1)
    logits, _ = apply(zoned.params, inputs, state, masks=expected_masks(zoned.config))
    np.testing.assert_array_equal(drawn, logits[len(PROMPT) - 1 :, 0].argmax(axis=-1))
    without = generate([model()], PROMPT, 20, sampling=GREEDY, key=jax.random.key(0))
    assert drawn.tolist() != without[0].tolist()


# Of few sizes, since each takes programs of its own.
SCORES = st.sampled_from([2, 3, 9]).flatmap(
    lambda size: st.lists(st.integers(-40, 40), min_size=size, max_size=size, unique=True)
)


@given(SCORES, st.integers(0, 10), st.floats(0.05, 1.0), st.floats(0.25, 4.0))
def test_what_is_left_is_the_fewest_most_probable_and_keeps_its_proportions(
    scores, top_k, top_p, temperature
):
    logits = np.array(scores) / 8.0
    left = np.asarray(
        filter_logits(
            Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
            jnp.asarray(logits, jnp.float32),
        )
    )
    order = sorted(range(len(scores)), key=lambda n: -logits[n])[: top_k or None]
    p = np.exp(logits[order] / temperature) / np.exp(logits[order] / temperature).sum()
    before = np.cumsum(p) - p
    if np.abs(before - top_p).min() < 1e-4:
        return  # on the edge, rounding decides
    expected = [token for token, less in zip(order, before, strict=True) if less < top_p]
    assert set(np.flatnonzero(np.isfinite(left))) == set(expected)
    scaled = (logits[expected] - logits.max()) / temperature
    np.testing.assert_allclose(left[expected], scaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.6)])
def test_tokens_as_probable_as_the_last_one_kept_are_kept_too(sampling):
    kept = np.isfinite(filter_logits(sampling, jnp.array([0.0, 2.0, 1.0, 1.0])))
    np.testing.assert_array_equal(kept, [False, True, True, True])


def test_tokens_are_drawn_by_their_probabilities():
    scores, keys = jnp.log(jnp.array([0.1, 0.6, 0.3])), jax.random.split(jax.random.key(0), 4000)
    for temperature in (0.5, 1.0):
        draw = functools.partial(sample_token, Sampling(temperature=temperature), scores)
        share = np.bincount(jax.vmap(draw)(keys), minlength=3) / len(keys)
        powers = np.array([0.1, 0.6, 0.3]) ** (1 / temperature)
        np.testing.assert_allclose(share, powers / powers.sum(), atol=0.03)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-45, 1e-38, 1e-6])
def test_low_temperatures_take_the_most_probable(temperature):
    scores = jnp.array([-3.0, -1.0, -2.0])
    assert sample_token(Sampling(temperature=temperature), scores, jax.random.key(0)) == 1


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"temperature": -0.5}, "temperature=-0.5: must be at least 0"),
        ({"temperature": 1e39}, "temperature=1e+39: must be finite in float32 and at least 0"),
        ({"temperature": float("nan")}, "temperature=nan: must be finite"),
        ({"top_k": -1}, "top_k=-1: must be at least 1, or 0 for no limit"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5: must be above 0 and at most 1"),
    ],
    ids=str,
)
def test_sampling_outside_its_limits_is_refused(setting, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        Sampling(**setting)


@pytest.mark.parametrize(
    ("models", "prompt", "length", "samples", "reason"),
    [
        (0, 3, 1, 1, "a prompt of 3 tokens for 0 models: give at least one of each"),
        (1, 0, 1, 1, "a prompt of 0 tokens for 1 models: give at least one of each"),
        (1, 3, 0, 1, "length=0: must be at least 1"),
        (1, 3, 1, 0, "samples=0: must be at least 1"),
    ],
    ids=["model", "prompt", "length", "samples"],
)
def test_nothing_to_draw_is_refused(models, prompt, length, samples, reason):
    with pytest.raises(ValueError, match=reason):
        generate([model()] * models, PROMPT[:prompt], length, samples, key=jax.random.key(0))


def test_sampling_that_leaves_no_token_is_refused():
    none_left = Sampling(never=tuple(range(len(WORDS))))
    with pytest.raises(ValueError, match=r"never=\(0, 1, 2, 3, 4, 5\): leaves no token to draw"):
        generate([model()], PROMPT, 1, sampling=none_left, key=jax.random.key(0))


def test_tokens_that_are_left_out_may_come_in_a_list():
    drawn = generate([model()], PROMPT, 9, sampling=Sampling(never=[1, 4]), key=jax.random.key(0))
    assert not set(drawn[0]) & {1, 4}
    assert Sampling(never=[1, 4]) == Sampling(never=(1, 4))


def test_unk_is_left_out_unless_it_is_the_only_word():
    assert unknown_id(Vocabulary(("a", "<unk>"))) == (1,)
    assert unknown_id(Vocabulary(("<unk>",))) == unknown_id(WORDS) == ()


@pytest.mark.parametrize(
    "ids",
    [
        {"prompt": np.array([1, 6])},
        {"prompt": np.array([-1, 2])},
        {"sampling": Sampling(never=(6,))},
        {"until": 6},
    ],
    ids=str,
)
def test_ids_of_another_vocabulary_are_refused(ids):
    given = {"prompt": PROMPT, **ids}
    with pytest.raises(
        ValueError, match=r"ids .* for a vocabulary of 6: encode the text with the model's own"
    ):
        generate([model()], length=1, key=jax.random.key(0), **given)


def test_models_of_different_words_are_refused():
    other = dataclasses.replace(model(), vocabulary=Vocabulary(tuple("abcdeg")))
    with pytest.raises(ValueError, match="different vocabularies: use models trained on one"):
        generate((model(), other), PROMPT, 1, key=jax.random.key(0))


@pytest.mark.parametrize("words", ["abc", "abcdefgh"])
def test_model_whose_vocabulary_is_not_its_parameters_is_refused(words):
    vocabulary = Vocabulary(tuple(words))
    fitting, other = make(0, vocabulary), dataclasses.replace(model(), vocabulary=vocabulary)
    reason = f"a vocabulary of {len(words)} for an embedding of 6 rows: make the model with"
    for models in ([other], [fitting, other]):
        with pytest.raises(InputError, match=reason):
            generate(models, np.array([1, 2]), 1, key=jax.random.key(0))


def test_every_model_writes_in_its_own_precision(monkeypatch):
    asked, unroll = [], Predictor.unroll

    def watched(predictor, *arguments):
        asked.append(predictor.compute.precision)
        return unroll(predictor, *arguments)

    monkeypatch.setattr(Predictor, "unroll", watched)
    precisions = ["float32", "bfloat16"]
    models = [model(hidden_size=3, precision=precision) for precision in precisions]
    generate(models, PROMPT, 1, key=jax.random.key(0))
    assert asked == precisions * 2  # the prompt, and the text


@pytest.mark.parametrize("top_p", [1e-300, 1e-50])
def test_shares_that_round_to_nothing_take_the_most_probable(top_p):
    scores = jnp.array([-3.0, -1.0, -2.0])
    assert sample_token(Sampling(top_p=top_p), scores, jax.random.key(0)) == 1
