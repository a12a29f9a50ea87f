import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.array_types import Masks, RecurrentMasks
from zaremba_jax.config import RegularizerConfig, override
from zaremba_jax.errors import InputError
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import (
    active_rates,
    drop_weights,
    dropout_mask,
    expected_masks,
    penalizes_every_word,
    penalty,
    sample_masks,
    zoneout_mask,
)

LAYERS, TIME, BATCH, FEATURES, HIDDEN, VOCABULARY = 2, 12, 6, 5, 10, 9
PLAIN = override(
    QUICK, layers=LAYERS, hidden_size=HIDDEN, embedding_size=FEATURES, init_scale=0.5, dropout=0.0
)
# Shapes: a mask per layer and one for the last output; through time, a mask per layer.
SITES = [(TIME, BATCH, FEATURES), (TIME, BATCH, HIDDEN), (TIME, BATCH, HIDDEN)]
STATES = [(TIME, BATCH, HIDDEN)] * LAYERS
NOISE = {
    "dropout": SITES,
    "hidden_dropout": STATES,
    "update_dropout": STATES,
    "word_dropout": [(TIME, BATCH, 1)],
    "zoneout_hidden": STATES,
    "zoneout_cell": STATES,
}
RATES = st.floats(0.05, 0.95)


@functools.cache
def params():
    return init_params(PLAIN.model, VOCABULARY, key=jax.random.key(9))


@functools.cache
def window():
    """Tokens of a window."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (TIME, BATCH))
    with jax.ensure_compile_time_eval():  # no tracer is kept if what is traced calls this first
        return jnp.asarray(tokens, jnp.int32)


def masks_of(settings=None, key=0, tokens=None):
    tokens = window() if tokens is None else tokens
    config = override(PLAIN, **settings or {})
    rates = active_rates(config.regularizers)
    return sample_masks(config, rates, tokens, VOCABULARY, key=jax.random.key(key))


def parts(masks):
    """Every array of the masks, by the setting that it belongs to."""
    recurrent = masks.recurrent or ()
    arrays = {
        "word_dropout": [masks.words],
        "dropout": [*(masks.inputs or ()), masks.output],
        "hidden_dropout": [layer.hidden for layer in recurrent],
        "update_dropout": [layer.update for layer in recurrent],
        "zoneout_hidden": [layer.zoneout_hidden for layer in recurrent],
        "zoneout_cell": [layer.zoneout_cell for layer in recurrent],
    }
    arrays = {name: [np.asarray(x) for x in xs if x is not None] for name, xs in arrays.items()}
    return {name: xs for name, xs in arrays.items() if xs}


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_every_rate_of_zero_is_no_mask_no_weight_dropped_and_no_penalty():
    rates = active_rates(RegularizerConfig(dropout=0.0))
    assert rates == {}
    assert masks_of() == Masks()
    assert masks_of({"mask_each": "window"}) == Masks()
    assert drop_weights(rates, params(), key=None) is params()
    assert expected_masks(PLAIN) is None
    assert float(penalty(rates, params(), jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1)))) == 0


@pytest.mark.parametrize("name", NOISE)
def test_a_method_has_masks_at_its_own_sites_alone(name):
    arrays = parts(masks_of({name: 0.5}))
    assert {name: [x.shape for x in xs] for name, xs in arrays.items()} == {name: NOISE[name]}


@given(st.dictionaries(st.sampled_from(list(NOISE)), st.just(0.0) | RATES), st.integers(0, 99))
def test_a_method_s_key_and_rate_decide_its_masks_whatever_else_is_on(settings, key):
    arrays = parts(masks_of(settings, key))
    assert arrays.keys() == {name for name, rate in settings.items() if rate}
    for name in arrays:
        assert_equal(arrays[name], parts(masks_of({name: settings[name]}, key))[name])


@given(RATES, st.integers(0, 99))
def test_a_dropout_mask_holds_zeros_and_the_inverse_of_the_kept_share_and_averages_to_one(
    rate, key
):
    mask = np.asarray(dropout_mask(rate, SITES[1], key=jax.random.key(key)))
    np.testing.assert_allclose(mask[mask != 0], 1 / (1 - rate), rtol=1e-5)
    assert abs(mask.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / mask.size)


@given(RATES, st.integers(0, 99))
def test_a_zoneout_mask_holds_a_one_for_a_share_of_units_that_equals_the_rate(rate, key):
    mask = np.asarray(zoneout_mask(rate, SITES[1], key=jax.random.key(key)))
    assert set(np.unique(mask)) <= {0, 1}
    assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)


def test_the_number_of_a_site_decides_its_masks_for_ever():
    """So that the masks of every run can be drawn again from its seed."""
    masks = parts(masks_of(dict.fromkeys(NOISE, 0.5)))
    numbers = {
        "dropout": [1, 2],  # and 0, of another size
        "hidden_dropout": [4, 8],
        "update_dropout": [5, 9],
        "zoneout_hidden": [6, 10],
        "zoneout_cell": [7, 11],
    }

    def key_of(number):
        return jax.random.fold_in(jax.random.key(0), number)

    for name, sites in numbers.items():
        draw = zoneout_mask if name.startswith("zoneout") else dropout_mask
        drawn = [draw(0.5, STATES[0], key=key_of(number)) for number in sites]
        assert_equal(masks[name][-len(drawn) :], [np.asarray(x) for x in drawn])
    words = dropout_mask(0.5, (VOCABULARY, BATCH), key=key_of(3))
    assert_equal(masks["word_dropout"][0][..., 0], words[window(), jnp.arange(BATCH)[None, :]])


def test_a_rate_of_zero_is_the_identity():
    key = jax.random.key(0)
    np.testing.assert_array_equal(dropout_mask(0.0, SITES[1], key=key), np.ones(SITES[1]))
    np.testing.assert_array_equal(zoneout_mask(0.0, SITES[1], key=key), np.zeros(SITES[1]))
    assert_equal(drop_weights({"dropconnect": 0.0}, params(), key=key), params())


@pytest.mark.parametrize("mask_each", ["step", "window"])
@pytest.mark.parametrize("site", ["input_dropout", "output_dropout"])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_a_site_with_a_rate_of_its_own_has_the_masks_that_dropout_draws_there(
    site, rate, mask_each
):
    """And the others keep theirs; in a sweep, in which rates are traced, too."""
    settings = {"dropout": 0.5, "mask_each": mask_each}
    masks, others = masks_of(settings | {site: rate}), masks_of(settings)
    there = masks_of({"dropout": rate, "mask_each": mask_each})
    assert masks.inputs
    assert others.inputs
    if site == "input_dropout":
        assert_equal(masks.inputs[0], there.inputs[0] if there.inputs else None)
        assert_equal((masks.inputs[1:], masks.output), (others.inputs[1:], others.output))
    else:
        assert_equal(masks.output, there.output)
        assert_equal(masks.inputs, others.inputs)
    config = override(PLAIN, **settings | {site: 0.0})
    key, rates = jax.random.key(0), {"dropout": 0.5, site: jnp.float32(rate)}
    swept = jax.jit(lambda rates: sample_masks(config, rates, window(), VOCABULARY, key=key))(rates)
    if rate:
        unset = override(PLAIN, **settings)
        given = {"dropout": 0.5, site: rate}
        assert_equal(sample_masks(unset, given, window(), VOCABULARY, key=key), masks)
        return assert_equal(swept, masks)
    own = swept.inputs[0] if site == "input_dropout" and swept.inputs else swept.output
    np.testing.assert_array_equal(own, np.ones(own.shape))  # among others that are not 0


def test_a_site_can_have_the_only_masks():
    masks = masks_of({"input_dropout": 0.5})
    assert masks.output is None
    assert masks.inputs is not None
    assert [mask is None for mask in masks.inputs] == [False, True]
    masks = masks_of({"output_dropout": 0.5})
    assert masks.inputs is None
    assert masks.output is not None


def test_masks_are_as_large_as_the_layers_that_they_are_for():
    config = override(PLAIN, output_size=4, dropout=0.5, zoneout_cell=0.5, update_dropout=0.5)
    masks = sample_masks(
        config, active_rates(config.regularizers), window(), VOCABULARY, key=jax.random.key(0)
    )
    assert masks.inputs
    assert masks.output is not None
    assert masks.recurrent
    assert [mask.shape[-1] for mask in masks.inputs if mask is not None] == [FEATURES, HIDDEN]
    assert masks.output.shape[-1] == 4
    for layer, size in zip(masks.recurrent, (HIDDEN, 4), strict=True):
        assert {x.shape for x in jax.tree.leaves(layer)} == {(TIME, BATCH, size)}


def test_zoneout_at_rate_1_keeps_every_unit():
    arrays = parts(masks_of({"zoneout_hidden": 1, "zoneout_cell": 1}))
    assert all(np.all(x == 1) for x in arrays["zoneout_hidden"] + arrays["zoneout_cell"])


def test_one_key_gives_every_mask_again_and_another_key_others():
    rates = dict.fromkeys(NOISE, 0.5)
    first, repeat, other = (parts(masks_of(rates, key)) for key in (0, 0, 1))
    assert_equal(first, repeat)
    same = jax.tree.leaves(jax.tree.map(np.array_equal, first, other))
    assert len(same) == sum(map(len, NOISE.values()))
    assert not any(same)


def test_masks_differ_between_methods_layers_time_steps_and_streams():
    masks = parts(masks_of(dict.fromkeys(NOISE, 0.5)))
    del masks["word_dropout"]
    patterns = [x != 0 for xs in masks.values() for x in xs if x.shape == STATES[0]]
    assert len(patterns) == 2 + 4 * LAYERS
    assert len({p.tobytes() for p in patterns}) == len(patterns)
    for pattern in patterns:
        rows = pattern.reshape(-1, HIDDEN)  # one per time step and stream
        assert len({row.tobytes() for row in rows}) > 0.9 * len(rows)


@pytest.mark.parametrize("name", ["dropout", "hidden_dropout", "update_dropout"])
def test_variational_masks_are_one_for_all_time_steps_and_differ_between_windows(name):
    settings = {name: 0.5, "mask_each": "window"}
    first, second = (parts(masks_of(settings, key))[name] for key in (0, 1))
    for a, b, shape in zip(first, second, NOISE[name], strict=True):
        assert a.shape == (1, *shape[1:])
        assert not np.array_equal(a, b)
        assert len({stream.tobytes() for stream in a[0]}) == BATCH


@pytest.mark.parametrize("mask_each", ["step", "window"])
def test_zoneout_draws_for_every_time_step_whatever_the_dropout_masks_do(mask_each):
    (mask, _) = parts(masks_of({"zoneout_hidden": 0.5, "mask_each": mask_each}))["zoneout_hidden"]
    assert len({row.tobytes() for row in mask}) == TIME


@pytest.mark.parametrize("mask_each", ["step", "window"])
def test_word_dropout_drops_a_word_wherever_it_occurs_in_a_stream_and_streams_differ(mask_each):
    (mask,) = parts(masks_of({"word_dropout": 0.5, "mask_each": mask_each}))["word_dropout"]
    factor = [{} for _ in range(BATCH)]
    for (t, b), word in np.ndenumerate(np.asarray(window())):
        assert factor[b].setdefault(int(word), mask[t, b, 0]) == mask[t, b, 0]
    shared = [
        (one[word], other[word])
        for one, other in itertools.pairwise(factor)
        for word in one.keys() & other.keys()
    ]
    assert any(a != b for a, b in shared)
    assert any(a == b for a, b in shared)


def test_word_dropout_does_not_depend_on_where_words_stand():
    (mask,) = parts(masks_of({"word_dropout": 0.5}))["word_dropout"]
    (turned,) = parts(masks_of({"word_dropout": 0.5}, tokens=window()[::-1]))["word_dropout"]
    np.testing.assert_array_equal(turned, mask[::-1])


def test_zoneout_is_evaluated_by_its_expectation():
    config = override(PLAIN, zoneout_hidden=0.25, zoneout_cell=0.5, dropout=0.5)
    masks = expected_masks(config)
    assert masks is not None
    assert masks.recurrent is not None
    assert (masks.words, masks.inputs, masks.output) == (None, None, None)
    assert len(masks.recurrent) == LAYERS
    for layer in masks.recurrent:
        assert (layer.hidden, layer.update) == (None, None)
        np.testing.assert_array_equal(layer.zoneout_hidden, [[[0.25]]])
        np.testing.assert_array_equal(layer.zoneout_cell, [[[0.5]]])
    only_hidden = expected_masks(override(PLAIN, zoneout_hidden=0.25))
    assert only_hidden is not None
    assert only_hidden.recurrent == (RecurrentMasks(zoneout_hidden=jnp.full((1, 1, 1), 0.25)),) * 2


def test_dropconnect_masks_each_recurrent_weight_and_nothing_else():
    rate = 0.25
    dropped = drop_weights({"dropconnect": rate}, params(), key=jax.random.key(0))
    patterns = []
    for layer, original in zip(dropped.layers, params().layers, strict=True):
        factor = np.asarray(layer.recurrent_weights / original.recurrent_weights)
        np.testing.assert_allclose(factor[factor != 0], 1 / (1 - rate), rtol=1e-6)
        share = np.mean(factor == 0)
        assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / factor.size)
        patterns.append(factor != 0)
    assert not np.array_equal(*patterns)
    restored = tuple(
        dataclasses.replace(layer, recurrent_weights=original.recurrent_weights)
        for layer, original in zip(dropped.layers, params().layers, strict=True)
    )
    assert_equal(dataclasses.replace(dropped, layers=restored), params())


def test_dropconnect_is_decided_by_its_key_and_refused_without_one():
    rates = {"dropconnect": 0.5}
    first, repeat, other = (
        drop_weights(rates, params(), key=jax.random.key(key)).layers for key in (0, 0, 1)
    )
    assert_equal(first, repeat)
    assert not np.array_equal(first[0].recurrent_weights, other[0].recurrent_weights)
    with pytest.raises(InputError, match="dropconnect is on and has no key to draw from; give one"):
        drop_weights(rates, params(), key=None)


def test_the_key_of_a_layer_decides_its_dropped_weights_for_ever():
    """So that those of every run can be drawn again from its seed."""
    dropped = drop_weights({"dropconnect": 0.25}, params(), key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(0), LAYERS)
    for layer, key in zip(dropped.layers, keys, strict=True):
        kept = jax.random.bernoulli(key, jnp.float32(0.75), layer.recurrent_weights.shape)
        np.testing.assert_array_equal(layer.recurrent_weights != 0, kept)


def gradient_of_penalty(**rates):
    outputs = jnp.zeros((TIME, BATCH, HIDDEN))
    return jax.grad(lambda params: penalty(rates, params, outputs, outputs))(params())


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_elastic_net_pulls_every_weight_by_l1_sign_and_twice_l2_and_no_bias(l1, l2):
    rates = {name: rate for name, rate in (("l1", l1), ("l2", l2)) if rate}

    def expected(path, leaf):
        if path[-1].name == "bias":
            return np.zeros_like(leaf)
        return l1 * np.sign(leaf) + 2 * l2 * np.asarray(leaf)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        gradient_of_penalty(**rates),
        jax.tree_util.tree_map_with_path(expected, params()),
    )


@pytest.mark.parametrize("tied", [False, True])
def test_parts_of_the_elastic_net_are_over_all_weights_a_tied_one_once(tied):
    model = override(PLAIN, embedding_size=0, tie_weights=tied).model
    params = init_params(model, VOCABULARY, key=jax.random.key(0))
    outputs = jnp.zeros((1, 1, 1))

    def total(**rates):
        return float(penalty(rates, params, outputs, outputs))

    weights = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params) if x.ndim == 2])
    np.testing.assert_allclose(total(l1=0.5), 0.5 * np.abs(weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(total(l2=0.25), 0.25 * (weights**2).sum(), rtol=1e-6)


def test_penalties_on_activations_are_of_the_dropped_output_and_of_the_raw_output_s_change():
    rng = np.random.default_rng(0)
    outputs, dropped = rng.normal(size=(2, TIME, BATCH, HIDDEN)).astype(np.float32)
    size = BATCH * HIDDEN

    def total(**rates):
        return float(penalty(rates, params(), jnp.asarray(outputs), jnp.asarray(dropped)))

    np.testing.assert_allclose(total(activation_l2=2.0), 2 * (dropped**2).sum() / size, rtol=1e-5)
    change = outputs[1:] - outputs[:-1]
    np.testing.assert_allclose(
        total(temporal_activation_l2=3.0), 3 * (change**2).sum() / size, rtol=1e-5
    )


@given(
    st.dictionaries(
        st.sampled_from(["l1", "l2", "activation_l2", "temporal_activation_l2"]),
        st.floats(0, 10, width=32),
    )
)
def test_penalties_add_up_and_grow_with_their_strengths(rates):
    outputs, dropped = jax.random.normal(jax.random.key(0), (2, *SITES[1]))
    each = [rates[name] * penalty({name: 1.0}, params(), outputs, dropped) for name in rates]
    np.testing.assert_allclose(penalty(rates, params(), outputs, dropped), sum(each), rtol=1e-4)
    assert all(float(x) >= 0 for x in each)


def test_a_single_time_step_has_no_change_to_penalize():
    outputs = jnp.ones((1, BATCH, HIDDEN))
    assert float(penalty({"temporal_activation_l2": 3.0}, params(), outputs, outputs)) == 0


STRENGTHS = [f.name for f in dataclasses.fields(RegularizerConfig) if f.name != "mask_each"]


@pytest.mark.parametrize("name", STRENGTHS)
def test_only_penalties_on_weights_reach_words_that_a_window_lacks(name):
    assert penalizes_every_word({name: 0.1}) == (name in ("l1", "l2", "weight_decay"))


def test_rates_are_rounded_as_those_are_that_a_program_is_given():
    assert active_rates(RegularizerConfig(dropout=0.1)) == {"dropout": float(np.float32(0.1))}


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.5])
def test_a_traced_rate_draws_the_masks_of_the_setting_to_the_bit(rate):
    """Of 0.15, 1 / (1 - rate) is another float32 unless 1 - rate was rounded to one before."""
    key = jax.random.key(0)
    traced = jax.jit(lambda rate: dropout_mask(rate, SITES[1], key=key))(jnp.float32(rate))
    (setting,) = active_rates(RegularizerConfig(dropout=rate)).values()
    np.testing.assert_array_equal(dropout_mask(setting, SITES[1], key=key), traced)


@pytest.mark.parametrize("name", NOISE)
def test_a_traced_rate_draws_the_masks_of_the_setting_in_double_precision_too(float64, name):
    config, key = override(PLAIN, **{name: 0.35}), jax.random.key(0)
    swept = jax.jit(lambda rate: sample_masks(config, {name: rate}, window(), VOCABULARY, key=key))(
        np.float32(0.35)
    )
    for a, b in zip(*map(jax.tree.leaves, (swept, masks_of({name: 0.35}))), strict=True):
        np.testing.assert_array_equal(a != 0, b != 0)
