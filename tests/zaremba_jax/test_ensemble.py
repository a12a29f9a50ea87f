"""A member of an ensemble equals the same model alone; a mixture averages probabilities."""

import dataclasses
import functools
import inspect
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from invoke import run_on_devices
from model_examples import model_of

from experiments.compilers import hlo
from zaremba_jax.config import override
from zaremba_jax.data.windows import windows
from zaremba_jax.ensemble import mixture_nll, mixture_perplexities, subsets
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.model import Predictor
from zaremba_jax.parallel.data_parallel import init_data_parallel, train_data_parallel
from zaremba_jax.parallel.members import (
    chunk_members,
    chunk_sizes,
    finite_members,
    init_chunks,
    init_members,
    members_nll,
    members_that_fit,
    train_members,
)
from zaremba_jax.parallel.mesh import MEMBER, make_mesh
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.train import init_train_state, train_windows

VOCABULARY = 7
CONFIG = override(QUICK, layers=1, hidden_size=6, batch_size=3, unroll=4, epochs=9, dropout=0.5)
SEEDS = (4, 5, 2**32 - 1)
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 3 * 4 * 5 + 3).astype(np.int32)


@functools.cache
def one_device():
    return make_mesh(jax.devices()[:1])


@functools.cache
def text():
    return jnp.asarray(windows(IDS, CONFIG.train.batch_size, CONFIG.train.unroll))


def past_an_epoch():
    return jnp.concatenate([text(), text()[:2]])


def alone(seed, config=CONFIG):
    state = init_train_state(config, VOCABULARY, jnp.asarray(seed, jnp.uint32))
    state, statistics = train_windows(config, state, past_an_epoch(), windows_per_epoch=len(text()))
    return state, statistics.nll


def together(seeds, config=CONFIG, rates=None, mesh=None):
    mesh = mesh or one_device()
    states = init_members(config, VOCABULARY, seeds, mesh)
    states, statistics = train_members(
        config, states, past_an_epoch(), mesh, rates, windows_per_epoch=len(text())
    )
    return states, statistics.nll


def member(states, index):
    return jax.tree.map(lambda x: x[index], states)


def numbers(state):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def assert_close(one, other, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


@pytest.fixture(scope="module")
def trained():
    return together(SEEDS)


def test_members_start_as_their_seeds_do_to_the_bit():
    states = init_members(CONFIG, VOCABULARY, SEEDS, one_device())
    for index, seed in enumerate(SEEDS):
        expected = init_train_state(override(CONFIG, seed=seed), VOCABULARY)
        jax.tree.map(
            np.testing.assert_array_equal, numbers(member(states, index)), numbers(expected)
        )


def test_members_that_go_on_from_a_model_start_as_one_that_does_alone():
    params = init_train_state(override(CONFIG, seed=9), VOCABULARY).params
    chunks = init_chunks(CONFIG, VOCABULARY, SEEDS, 2, one_device(), params)
    last = init_train_state(override(CONFIG, seed=SEEDS[-1]), VOCABULARY, params=params)
    jax.tree.map(np.testing.assert_array_equal, numbers(member(chunks[-1], -1)), numbers(last))
    jax.tree.map(np.testing.assert_array_equal, last.params, params)
    alone = init_data_parallel(CONFIG, VOCABULARY, one_device(), params)
    jax.tree.map(np.testing.assert_array_equal, alone.params, params)
    train_windows(CONFIG, last, text())  # gives its buffers away
    assert np.isfinite(params.embedding).all()


def test_members_cannot_go_on_from_a_model_of_other_shapes():
    params = init_train_state(override(CONFIG, hidden_size=5), VOCABULARY).params
    for init in (
        lambda: init_members(CONFIG, VOCABULARY, SEEDS, one_device(), params),
        lambda: init_data_parallel(CONFIG, VOCABULARY, one_device(), params),
    ):
        with pytest.raises(InputError, match=r"embedding \(\(7, 5\) there, \(7, 6\) expected"):
            init()


def test_members_have_their_own_masks_whatever_kind_of_key_is_jax_s_default():
    with jax.default_prng_impl("rbg"):  # whose keys draw other numbers in a batch
        test_members_start_as_their_seeds_do_to_the_bit()
    states = init_members(CONFIG, VOCABULARY, SEEDS, one_device())
    assert states.key.dtype == jax.random.key(0, impl="threefry2x32").dtype


def test_chunks_have_the_members_one_after_another_and_the_last_one_pads():
    chunks = init_chunks(CONFIG, VOCABULARY, SEEDS, 2, one_device())
    assert [len(states.step) for states in chunks] == [2, 1]
    expected = init_members(CONFIG, VOCABULARY, SEEDS, one_device())
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *map(numbers, chunks))
    jax.tree.map(np.testing.assert_array_equal, together, numbers(expected))
    padded = [indices.tolist() for indices in chunk_members(3, (2, 2))]
    assert padded == [[0, 1], [2, 2]]


def test_member_of_an_ensemble_is_the_same_run_as_that_member_alone(trained):
    states, nll = trained
    for index, seed in enumerate(SEEDS):
        state, expected = alone(seed)
        np.testing.assert_allclose(nll[index], expected, rtol=1e-5)
        assert_close(member(states, index).params, state.params)
    # Other members differ.
    assert not np.allclose(nll[0], nll[1], rtol=1e-3)


def test_ensemble_of_one_is_the_single_run_to_the_bit():
    states, nll = together(SEEDS[:1])
    state, expected = alone(SEEDS[0])
    np.testing.assert_array_equal(nll[0], expected)
    jax.tree.map(np.testing.assert_array_equal, numbers(member(states, 0)), numbers(state))


def test_permuting_members_permutes_the_results_and_changes_nothing_else(trained):
    states, nll = together(SEEDS[::-1])
    np.testing.assert_allclose(nll[::-1], trained[1], rtol=1e-6)
    assert_close(jax.tree.map(lambda x: x[::-1], states.params), trained[0].params, rtol=1e-5)


def test_members_can_differ_in_rates_so_that_a_sweep_is_an_ensemble():
    members = [
        {"dropout": 0.5, "l2": 1e-3, "learning_rate": 1.0},
        {"dropout": 0.8, "l2": 1e-2, "learning_rate": 0.25},
    ]
    rates = {name: jnp.array([settings[name] for settings in members]) for name in members[0]}
    states, nll = together((3, 3), override(CONFIG, **members[0]), rates)
    for index, settings in enumerate(members):
        state, expected = alone(3, override(CONFIG, **settings))
        np.testing.assert_allclose(nll[index], expected, rtol=1e-5)
        assert_close(member(states, index).params, state.params)


@pytest.mark.parametrize("streams", [1, 4])
def test_every_member_is_evaluated_as_it_is_alone(trained, streams):
    config = override(CONFIG, zoneout_hidden=0.25, zoneout_cell=0.5)
    predictors = Predictor(trained[0].params, expected_masks(config), config.compute)
    nll = members_nll(predictors, IDS, streams, one_device())
    assert nll.shape == (len(SEEDS), len(IDS) - 1)
    for index in range(len(SEEDS)):
        model = model_of(member(predictors.params, index), config)
        np.testing.assert_allclose(nll[index], text_nll(model, IDS, streams), rtol=1e-5)
    with pytest.raises(ValueError, match="encode the text with the model's own vocabulary"):
        members_nll(predictors, IDS + 1, streams, one_device())


NLL = st.tuples(st.integers(1, 6), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(0, 500, width=32))
)


@given(NLL)
def test_mixture_averages_probabilities_and_neither_logits_nor_logarithms(nll):
    probabilities = np.exp(-nll.astype(np.float64))  # at least e^-500
    np.testing.assert_allclose(mixture_nll(nll), -np.log(probabilities.mean(axis=0)), atol=1e-12)


@given(NLL, st.integers(1, 5), st.floats(-1e6, 1e6), st.randoms())
def test_mixture_is_the_model_of_one_or_of_equals_and_between_in_any_order_at_any_size(
    nll, copies, shift, random
):
    mixture, order = mixture_nll(nll), random.sample(range(len(nll)), len(nll))
    np.testing.assert_array_equal(mixture_nll(nll[:1]), nll[0])
    np.testing.assert_allclose(mixture_nll(np.repeat(nll[:1], copies, axis=0)), nll[0], atol=1e-12)
    np.testing.assert_allclose(mixture_nll(np.repeat(nll, copies, axis=0)), mixture, atol=1e-12)
    np.testing.assert_allclose(mixture_nll(nll[order]), mixture, atol=1e-12)
    exact = nll.astype(np.float64)  # in float32, 1e-9 would be nothing
    far = exact + shift  # probabilities that underflow, or overflow
    np.testing.assert_allclose(mixture_nll(far), mixture + shift, atol=1e-8)
    assert (exact.min(axis=0) - 1e-9 <= mixture).all()
    assert (mixture <= exact.max(axis=0) + 1e-9).all()
    bound = exact.mean()  # by Jensen's inequality
    assert mixture.mean() <= bound + 1e-9 * (1 + bound)


def test_mixture_is_in_double_precision_whatever_holds_the_nats():
    nll = np.random.default_rng(0).uniform(0, 9, (3, 5)).astype(np.float32)
    expected = mixture_nll(nll)
    assert expected.dtype == np.float64
    for held in (jnp.asarray(nll), list(nll), list(jnp.asarray(nll))):
        np.testing.assert_array_equal(mixture_nll(held), expected, strict=True)


def test_token_that_no_member_can_predict_has_no_probability_in_the_mixture():
    mixture = mixture_nll(np.array([[np.inf, np.inf], [np.inf, 1.0]]))
    np.testing.assert_allclose(mixture, [np.inf, 1 + np.log(2)])


def test_nats_of_one_model_alone_are_not_mixed_over_its_tokens():
    mix: Any = inspect.unwrap(mixture_nll)  # without the tests' own checks of shapes
    with pytest.raises(InputError, match=r"nats of shape \(2,\): give one row for each member, as"):
        mix([1.0, 2.0])


def test_mixtures_of_one_are_the_singles_and_of_all_the_mixture(trained):
    nll = members_nll(Predictor(trained[0].params), IDS, 1, one_device())
    models = [model_of(member(trained[0].params, i)) for i in range(3)]
    singles = [perplexity(text_nll(model, IDS)) for model in models]
    np.testing.assert_allclose(mixture_perplexities(nll, 1), singles, rtol=1e-5)
    (mixture,) = mixture_perplexities(nll, 3)
    assert mixture == perplexity(mixture_nll(nll)) < np.mean(singles)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_subsets_are_all_there_are_or_a_hundred_different_ones(sizes):
    drawn = subsets(*sizes)
    assert len(set(drawn)) == len(drawn) == min(math.comb(*sizes), 100)
    assert drawn == sorted(drawn) == subsets(*sizes)
    assert all(subset == tuple(sorted(set(subset))) for subset in drawn)
    assert {len(subset) for subset in drawn} == {sizes[1]}
    assert {index for subset in drawn for index in subset} <= set(range(sizes[0]))


def test_a_hundred_subsets_leave_no_member_out():
    assert {index for subset in subsets(38, 10) for index in subset} == set(range(38))


def test_size_of_subsets_is_the_seed_that_draws_them():
    """So that the averages of every record can be made again."""
    rng = np.random.default_rng(10)
    draws = [tuple(sorted(rng.choice(38, 10, replace=False).tolist())) for _ in range(100)]
    assert set(draws) <= set(subsets(38, 10))


@pytest.mark.parametrize("size", [0, 4])
def test_mixture_of_more_members_than_there_are_is_refused(size):
    with pytest.raises(ValueError, match=f"a mixture of {size}: there are 3 members; take 1 to 3"):
        subsets(3, size)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_member_with_a_number_that_is_not_finite_is_found(trained, number):
    params = trained[0].params
    broken = params.softmax.replace(bias=params.softmax.bias.at[1, 2].set(number))
    assert finite_members(params).tolist() == [True] * 3
    assert finite_members(params.replace(softmax=broken)).tolist() == [True, False, True]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 8))
def test_chunks_hold_all_members_and_as_many_on_every_device(members, at_once, devices):
    mesh: Any = SimpleNamespace(shape={MEMBER: devices})
    *full, last = chunk_sizes(members, at_once, mesh)
    assert set(full) <= {at_once * devices}
    assert 0 < last <= at_once * devices
    assert last % devices == 0
    assert members <= sum(full) + last < members + devices


@pytest.mark.parametrize(("hidden_size", "words"), [(64, 1000), (4, 20_000)])
def test_members_that_fit_leave_room_for_what_training_one_needs(hidden_size, words):
    config = override(CONFIG, hidden_size=hidden_size, batch_size=20, unroll=20)
    text = jnp.zeros((3, 21, 20), jnp.int32)
    state = jax.eval_shape(lambda: init_train_state(config, words))
    memory = train_windows.lower(config, state, text).compile().memory_analysis()
    assert memory is not None
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert members_that_fit(config, words, 8, needed // 2) == 1
    for bytes_there in (4 * needed, 8 * needed):
        assert 2 <= members_that_fit(config, words, 8, bytes_there) <= bytes_there / needed
    assert members_that_fit(config, words, 8, 10**12) == 8
    if words == 20_000:  # whose logits are most of what it needs
        few, more = (override(config, softmax_tokens=tokens) for tokens in (0, 10))
        budget = 4 * needed
        assert members_that_fit(few, words, 8, budget) < members_that_fit(more, words, 8, budget)
    else:  # of which the parameters are a large part
        copies = {"average_from": 1, "keep": "best"}
        moments = {"optimizer": "adam", "learning_rate": 0.001}
        budget = 8 * needed
        for more in copies, moments:
            assert members_that_fit(override(config, **more), words, 8, budget) < members_that_fit(
                config, words, 8, budget
            )


EVERYTHING = {
    "batch_size": 3,
    "word_dropout": 0.1,
    "dropconnect": 0.2,
    "hidden_dropout": 0.1,
    "zoneout_hidden": 0.1,
    "activation_l2": 0.5,
    "temporal_activation_l2": 0.5,
    "l1": 0.01,
    "l2": 0.01,
    "clip_norm": 0.5,  # below the gradient norms here
    "weight_decay": 0.01,
    "input_dropout": 0.3,
    "average_from": 1,
    "keep": "best",
}


def spread(mesh, config):
    """Members 4 and 5, padded, on a mesh after an epoch, and the compiled program."""
    seeds = range(4, 4 + sum(chunk_sizes(2, 1, mesh)))
    states = init_members(config, VOCABULARY, seeds, mesh)
    compiled = train_members.lower(config, states, text(), mesh).compile()
    states, statistics = train_members(config, states, text(), mesh)
    loss = members_nll(Predictor(states.params), IDS, 1, mesh)
    return statistics.nll[:2], states, loss[:2], str(compiled.as_text())


def on_eight_devices():
    """What `test_spread_…` runs in a process with eight devices."""
    config = override(CONFIG, **EVERYTHING)
    expected = []
    for seed in (4, 5):
        state = init_train_state(config, VOCABULARY, jnp.asarray(seed, jnp.uint32))
        expected.append(train_windows(config, state, text()))
    # Eight members, six of them padding; or four on two devices each, where the three streams are
    # padded to four.
    for data, allowed in ((1, ()), (2, ("all-reduce",))):
        nll, states, loss, program = spread(make_mesh(jax.devices(), data), config)
        assert hlo.parse(program).collectives().keys() == set(allowed)
        for index, (state, statistics) in enumerate(expected):
            np.testing.assert_allclose(nll[index], statistics.nll, rtol=1e-5)
            assert_close(member(states, index).params, state.params)
            assert_close(member(states, index).average, state.average)
            alone_loss = text_nll(model_of(state.params), IDS)
            np.testing.assert_allclose(loss[index], alone_loss, rtol=1e-4)
    mesh = make_mesh(jax.devices()[:2], 2)
    state = init_data_parallel(override(config, seed=5), VOCABULARY, mesh)
    rates = {"average_from": np.float32(1)}
    state, statistics = train_data_parallel(override(config, seed=5), state, text(), mesh, rates)
    np.testing.assert_allclose(statistics.nll, expected[1][1].nll, rtol=1e-5)
    assert_close(state.params, expected[1][0].params)
    assert_close(state.average, expected[1][0].average)


@pytest.mark.parametrize("members", [1, 3])
def test_members_with_moments_and_rates_of_their_own_are_as_alone(members):
    config = override(CONFIG, optimizer="adam", learning_rate=0.01)
    rates = np.array([0.01, 0.02, 0.04][:members], np.float32)
    states, _ = together(SEEDS[:members], config, {"learning_rate": rates})
    for index, rate in enumerate(rates):
        state, _ = alone(SEEDS[index], override(config, learning_rate=float(rate)))
        assert_close(member(states, index).params, state.params)
        assert_close(member(states, index).opt_state, state.opt_state)


@pytest.mark.parametrize("members", [1, 3])
def test_members_with_averages_of_their_own_and_decay_are_as_alone(members):
    config = override(CONFIG, average_after_stall=5, keep="best", weight_decay=0.01)
    begins = np.array([1, 0, 2][:members], np.float32)
    states, _ = together(SEEDS[:members], config, {"average_from": begins})
    for index, epoch in enumerate(begins):
        state, own = (
            alone(SEEDS[index], override(config, average_from=int(epoch)))[0],
            member(states, index),
        )
        for name in ("params", "average", "best"):
            assert_close(getattr(own, name), getattr(state, name))
        is_last = jax.tree.map(np.array_equal, own.average, own.params)
        assert all(jax.tree.leaves(is_last)) == (epoch == 0)


def test_sites_of_members_have_rates_of_their_own():
    config = override(CONFIG, input_dropout=0.0, output_size=4, layers=2)
    rates = {"input_dropout": np.array([0.0, 0.25, 0.5], np.float32)}
    states, _ = together(SEEDS, config, rates)
    for index, (seed, rate) in enumerate(zip(SEEDS, rates["input_dropout"], strict=True)):
        state, _ = alone(seed, override(config, input_dropout=float(rate)))
        assert_close(member(states, index).params, state.params)


@pytest.mark.slow
def test_spread_over_devices_is_as_on_one_and_only_a_gradient_is_ever_reduced():
    run_on_devices(8, on_eight_devices)


def test_devices_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match="data_parallel=2: does not divide the 1 devices; give a"):
        make_mesh(jax.devices()[:1], 2)
    with pytest.raises(ValueError, match="data_parallel=0: does not divide the 1 devices; give a"):
        make_mesh(jax.devices()[:1], 0)
