import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import run_on_devices
from jax.sharding import PartitionSpec
from layer_examples import equations

from zaremba_jax import train
from zaremba_jax.config import override
from zaremba_jax.data.windows import windows
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_file import named_arrays
from zaremba_jax.parallel.mesh import DATA, make_mesh, state_specs
from zaremba_jax.parallel.streams import WHOLE_BATCH, BatchShare, streams_of_device
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import active_rates, drop_weights, sample_masks
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import (
    better_of,
    init_train_state,
    train_step,
    train_windows,
    window_loss,
)

VOCABULARY = 7
CONFIG = override(QUICK, layers=2, hidden_size=6, batch_size=3, unroll=4, epochs=9, dropout=0.5)
NOISE = {
    "dropout": 0.5,
    "hidden_dropout": 0.5,
    "update_dropout": 0.5,
    "word_dropout": 0.5,
    "zoneout_hidden": 0.5,
    "zoneout_cell": 0.5,
    "dropconnect": 0.5,
}
PENALTIES = {"l1": 1e-3, "l2": 1e-2, "activation_l2": 1.0, "temporal_activation_l2": 1.0}


@pytest.fixture(scope="module")
def text():
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 3 * 4 * 5 + 3).astype(np.int32)
    return jnp.asarray(windows(ids, CONFIG.train.batch_size, CONFIG.train.unroll))


def fresh(config=CONFIG):
    return init_train_state(config, VOCABULARY)


def values(state):
    """All of a state as NumPy arrays, the key as numbers."""
    return jax.tree.map(np.array, dataclasses.replace(state, key=jax.random.key_data(state.key)))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, values(one), values(other))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_product_of_a_step_is_of_the_precision(text, precision):
    step = functools.partial(train_step, override(CONFIG, precision=precision), len(text))
    program = jax.make_jaxpr(step)(fresh(), text[0])
    products = [
        product
        for product in equations(program.jaxpr, "dot_general")
        if product.params["precision"] is None  # not the exact sums of the embedding's gradient
    ]
    factors = {factor.aval.dtype for product in products for factor in product.invars}
    assert len(products) >= 15  # six for each of two layers, three for the softmax
    assert factors == {jnp.dtype(precision)}


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.5},
        NOISE | PENALTIES,
        {"dropout": 0.5, "mask_each": "window", "cell": "gru", "tie_weights": True},
    ],
    ids=["dropout", "everything", "tied"],
)
def test_step_subtracts_the_clipped_gradient_times_the_rate(text, settings):
    config = override(CONFIG, clip_norm=0.1, learning_rate=0.5, **settings)
    before = fresh(config)
    after, statistics = jax.jit(functools.partial(train_step, config, len(text)))(before, text[0])
    rates = active_rates(config.regularizers)
    mask_key, weight_key = jax.random.split(jax.random.fold_in(before.key, 0))
    masks = sample_masks(config, rates, text[0][:-1], VOCABULARY, key=mask_key)
    loss = functools.partial(window_loss, rates=rates)
    gradient, (expected_nll, rnn_state) = jax.jit(jax.grad(loss, has_aux=True))(
        *(before.params, text[0][:-1], text[0][1:], before.rnn_state, masks), weight_key=weight_key
    )
    scale = 0.5 * 0.1 / optax.tree.norm(gradient)
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - scale * g, rtol=1e-4, atol=1e-7),
        after.params,
        before.params,
        gradient,
    )
    np.testing.assert_allclose(statistics.nll, expected_nll, rtol=1e-6)
    assert_close_trees(after.rnn_state, rnn_state)
    assert int(after.step) == 1


def assert_close_trees(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), one, other)


@given(st.permutations([1, 1, 2, 2, 2, 2]))
def test_chunks_of_any_length_give_the_same_run(text, two_epochs, lengths):
    expected, nll = two_epochs
    epochs, state, parts = jnp.concatenate([text, text]), fresh(), []
    for first, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        chunk = epochs[first : first + length]
        state, part = train_windows(CONFIG, state, chunk, windows_per_epoch=len(text))
        parts.append(part.nll)
    np.testing.assert_allclose(jnp.concatenate(parts), nll, rtol=1e-5)
    assert_close_trees(state.params, expected.params)
    assert int(state.step) == int(expected.step) == 2 * len(text)


@pytest.fixture(scope="module")
def two_epochs(text):
    """The state after two epochs, trained on at once, and the nats of their windows."""
    windows = jnp.concatenate([text, text])
    state, statistics = train_windows(CONFIG, fresh(), windows, windows_per_epoch=len(text))
    return state, statistics.nll


@pytest.fixture(scope="module")
def loss_of():
    """The loss of three streams with penalties, by their columns of the text; and of one alone."""
    rates = {"activation_l2": 0.5, "temporal_activation_l2": 0.25, "l1": 0.01}
    params = fresh(override(CONFIG, layers=1)).params
    state = zero_state(params.layers, 3)
    jitted = jax.jit(jax.value_and_grad(functools.partial(window_loss, rates=rates), has_aux=True))

    def loss_of(window, weights=None):
        start = jax.tree.map(lambda x: x[: window.shape[1]], state)
        weights = None if weights is None else jnp.asarray(weights, jnp.float32)
        (loss, (nll, _)), gradient = jitted(
            params, window[:-1], window[1:], start, None, stream_weights=weights
        )
        return loss, nll, gradient

    return loss_of


def test_loss_of_streams_is_the_mean_of_theirs_in_any_order(text, loss_of):
    of_streams = [loss_of(text[0][:, [stream]]) for stream in range(3)]
    mean = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *of_streams)
    for order in itertools.permutations(range(3)):
        assert_close_trees(loss_of(text[0][:, order]), mean)


def test_a_stream_of_no_weight_counts_for_nothing(text, loss_of):
    expected = loss_of(text[0][:, [0, 1, 0]], [1.5, 1.5, 0.0])
    for padding in (1, 2):
        padded = loss_of(text[0][:, [0, 1, padding]], [1.5, 1.5, 0.0])
        assert_close_trees(padded, expected)
    of_streams = [loss_of(text[0][:, [stream]]) for stream in range(2)]
    assert_close_trees(expected, jax.tree.map(lambda *x: np.mean(x, axis=0), *of_streams))


def test_step_on_shares_of_the_batch_is_that_on_all_of_it(text):
    """Three streams, four with the padding, on two devices, played by an axis of `vmap`."""
    config = override(CONFIG, layers=1, word_dropout=0.5, activation_l2=1.0)
    before = fresh(config)
    whole, statistics = jax.jit(functools.partial(train_step, config, len(text)))(before, text[0])
    step = functools.partial(train_step, config, len(text), share=BatchShare("data"))
    shares = dataclasses.replace(before, rnn_state=zero_state(before.params.layers, 2))
    run = jax.jit(jax.vmap(step, in_axes=(None, None), axis_size=2, axis_name="data"))
    of_each, of_shares = run(shares, text[0])
    for device in range(2):
        after, measured = jax.tree.map(lambda x, device=device: x[device], (of_each, of_shares))
        assert_close_trees(after.params, whole.params)
        for name, value in vars(statistics).items():  # the norm is that of the mean gradient
            np.testing.assert_allclose(getattr(measured, name), value, rtol=1e-5)
    streams = jax.tree.map(lambda x: x.reshape(4, -1)[:3], of_each.rnn_state)
    assert_close_trees(streams, whole.rnn_state)


def assert_shard_map_changes_nothing():
    """Runs in a process with two devices, for the test below."""
    mesh = make_mesh(jax.devices(), data_parallel=2)
    spread = functools.partial(jax.shard_map, mesh=mesh)
    whole, streams = PartitionSpec(), PartitionSpec(None, DATA)
    window = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (5, 4)), jnp.int32)

    def compare(check, **changes):
        config = override(CONFIG, batch_size=4, layers=1, **changes)
        before = init_train_state(config, VOCABULARY)
        rates = {"l2": 0.1, "activation_l2": 1.0}

        def loss(mean, params, window, start):
            value, _ = window_loss(
                params, window[:-1], window[1:], start, compute=config.compute, rates=rates
            )
            return mean(value)

        def gradient(mean):
            return jax.value_and_grad(functools.partial(loss, mean))

        of_streams = spread(
            gradient(lambda value: jax.lax.pmean(value, DATA)),
            in_specs=(whole, streams, PartitionSpec(DATA)),
            out_specs=whole,
        )
        check(of_streams, gradient(lambda x: x), before.params, window, before.rnn_state)

        def step(share, state, window):
            after, statistics = train_step(config, 3, state, window, share=share)
            return after.params, after.rnn_state, statistics.nll

        of_shares = spread(
            functools.partial(step, BatchShare(DATA)),
            in_specs=(state_specs(), whole),
            out_specs=(whole, PartitionSpec(DATA), whole),
        )
        check(of_shares, functools.partial(step, WHOLE_BATCH), before, window)

    def same_values(divided, expected, *arguments):
        assert_close_trees(jax.jit(divided)(*arguments), jax.jit(expected)(*arguments))

    def same_types(divided, expected, *arguments):
        types = jax.eval_shape(divided, *arguments), jax.eval_shape(expected, *arguments)
        assert types[0] == types[1]

    compare(same_values)
    compare(same_types, kernel="pallas")
    compare(same_types, kernel="scan", softmax_tokens=3, zoneout_hidden=0.5)
    compare(same_types, precision="bfloat16", tie_weights=True, hidden_dropout=0.5)


def test_loss_and_step_within_shard_map_are_those_on_one_device():
    run_on_devices(2, assert_shard_map_changes_nothing)


@given(st.integers(1, 99), st.integers(1, 9))
def test_padding_makes_the_least_batch_that_devices_divide(batch_size, devices):
    padded = devices * streams_of_device(batch_size, devices)
    assert 0 <= padded - batch_size < devices


@pytest.mark.parametrize("carried", [False, True], ids=["zero", "carried"])
def test_windows_are_trained_on_in_the_order_of_the_text_and_state_starts_epochs_as_asked(
    text, carried
):
    still = {"learning_rate": 1e-30, "dropout": 0.0}  # parameters stay as they are
    config = override(CONFIG, carry_over_epochs=carried, **still)
    state = fresh(config)
    params = jax.tree.map(jnp.copy, state.params)
    first, of_first = train_windows(config, state, text)
    _, of_second = train_windows(config, first, text)
    nll = np.concatenate([of_first.nll, of_second.nll])
    evaluated, expected = jax.jit(window_loss), []
    zeros = rnn_state = zero_state(params.layers, config.train.batch_size)
    for _ in range(2):
        rnn_state = rnn_state if carried else zeros
        for window in text:
            _, (mean, rnn_state) = evaluated(params, window[:-1], window[1:], rnn_state, None)
            expected.append(mean)
    np.testing.assert_allclose(nll, expected, rtol=1e-5)
    assert len(set(np.asarray(nll[: len(text)]).tolist())) == len(text)


def test_epochs_are_the_same_to_the_bit_however_many_are_to_come(text):
    """Also the last epoch of a short run, whose rate has decayed."""
    settings = {"learning_rate": 0.7, "constant_epochs": 1, "decay_divisor": 1.2}
    few, many = (override(CONFIG, epochs=epochs, **settings) for epochs in (4, 50))
    short, long = (
        train_windows(config, fresh(config), jnp.tile(text, (4, 1, 1)), windows_per_epoch=len(text))
        for config in (few, many)
    )
    assert_same(short[0], long[0])
    jax.tree.map(np.testing.assert_array_equal, short[1], long[1])


def test_rates_given_as_numbers_are_the_settings_to_the_bit(text):
    """So that a sweep's member, given its rates beside the first's settings, is the run alone."""
    rates = {"learning_rate": 0.7, "dropout": 0.15, "word_dropout": 0.1, "l2": 0.01}
    shared = {"constant_epochs": 1, "decay_divisor": 1.2}
    first = override(CONFIG, learning_rate=0.3, word_dropout=0.5, l2=1e-3, **shared)
    numbers = {name: np.float32(rate) for name, rate in rates.items()}
    alone, member = (
        train_windows(
            config,
            fresh(config),
            jnp.tile(text, (3, 1, 1)),
            given,
            windows_per_epoch=len(text),
        )
        for config, given in ((override(first, **rates), None), (first, numbers))
    )
    assert_same(alone[0], member[0])


def test_seed_decides_initial_values_and_masks(text):
    first, _ = train_windows(CONFIG, fresh(), text)
    repeat, _ = train_windows(CONFIG, fresh(), text)
    assert_same(first, repeat)
    other = override(CONFIG, seed=1)
    assert not np.array_equal(fresh(other).params.embedding, fresh().params.embedding)
    assert_same(init_train_state(CONFIG, VOCABULARY, seed=1), fresh(other))
    same_start = dataclasses.replace(fresh(), key=fresh(other).key)
    different_masks, _ = train_windows(CONFIG, same_start, text)
    assert not np.array_equal(different_masks.params.embedding, first.params.embedding)


@pytest.fixture(scope="module")
def noisy_nll(text):
    """Nats of one window, the first of any epoch, under any rates; and those without noise."""
    config = override(CONFIG, **NOISE)
    state = fresh(config)
    jitted = jax.jit(functools.partial(train_step, config, len(text)))

    def nll(epoch, **rates):
        step = jnp.asarray(epoch * len(text), jnp.int32)
        at = dataclasses.replace(state, step=step)
        return float(jitted(at, text[0], dict.fromkeys(NOISE, 0.0) | rates)[1].nll)

    rnn_state = zero_state(state.params.layers, 3)
    plain = jax.jit(window_loss)(state.params, text[0][:-1], text[0][1:], rnn_state, None)[1][0]
    return nll, float(plain)


@pytest.mark.parametrize("name", NOISE)
def test_each_step_has_noise_of_its_own(noisy_nll, name):
    nll, plain = noisy_nll
    rates = {name: NOISE[name]}
    assert nll(0, **rates) == nll(0, **rates)
    assert len({nll(0, **rates), nll(1, **rates), nll(2, **rates), plain}) == 4


def test_a_traced_rate_of_zero_is_no_noise(noisy_nll):
    nll, plain = noisy_nll
    np.testing.assert_allclose(nll(0), plain, rtol=1e-6)


def test_penalty_moves_words_that_a_window_lacks_and_is_in_no_reported_nats(text):
    rates = {"l1": 0.01, "l2": 0.1}
    config = override(CONFIG, dropout=0.0, clip_norm=1e6, learning_rate=0.5, **rates)
    window = text[0] % 3  # words 3 to 6 are absent
    before = fresh(config)
    penalized = jax.jit(functools.partial(train_step, config, len(text)))
    after, penalized_window = penalized(before, window)
    absent = np.asarray(before.params.embedding[3:])
    pull = 0.01 * np.sign(absent) + 2 * 0.1 * absent
    np.testing.assert_allclose(after.params.embedding[3:], absent - 0.5 * pull, rtol=1e-4)
    free = override(config, l1=0.0, l2=0.0)
    plain, plain_window = jax.jit(functools.partial(train_step, free, len(text)))(before, window)
    np.testing.assert_array_equal(plain.params.embedding[3:], absent)
    np.testing.assert_allclose(penalized_window.nll, plain_window.nll, rtol=1e-6)
    # Here all rows of the embedding are trained, there only those in use.
    all_rows, _ = penalized(before, window, {"l1": 0.0, "l2": 0.0})
    assert_close_trees(all_rows.params, plain.params)


def test_dropped_weights_are_the_same_at_every_time_step_and_in_every_stream(text):
    config = override(CONFIG, dropout=0.0, dropconnect=0.5)
    state = fresh(config)
    step = jax.jit(functools.partial(train_step, config, len(text)))
    _, statistics = step(state, text[0])
    _, weight_key = jax.random.split(jax.random.fold_in(state.key, 0))
    noisy = drop_weights({"dropconnect": 0.5}, state.params, key=weight_key)
    # One time step and one stream after another, all with these weights.
    column, total = jax.jit(window_loss), 0.0
    for stream in range(3):
        rnn_state = zero_state(noisy.layers, 1)
        for t in range(4):
            tokens, targets = (text[0][k : k + 1, stream : stream + 1] for k in (t, t + 1))
            _, (mean, rnn_state) = column(noisy, tokens, targets, rnn_state, None)
            total += float(mean)
    np.testing.assert_allclose(statistics.nll, total / 12, rtol=1e-5)


def test_rate_of_no_regularizer_is_refused(text):
    with pytest.raises(InputError, match="rates of droput: choose from activation_l2, "):
        train_windows(CONFIG, fresh(), text, {"droput": 0.5})


OTHER_SHAPES = [
    ({"hidden_size": 5}, r"embedding \(\(7, 5\) there, \(7, 6\) expected\)"),
    ({"layers": 1}, r"layers\.1\.input_weights \(none there, \(6, 24\) expected\)"),
    ({"second_bias": True}, r"layers\.0\.second_bias \(\(24,\) there, none expected\)"),
    ({"tie_weights": True}, r"softmax\.weights \(none there, \(6, 7\) expected\)"),
]


@pytest.mark.parametrize(("changes", "reason"), OTHER_SHAPES)
def test_parameters_of_another_configuration_are_refused_traced_or_not(changes, reason):
    params = fresh(override(CONFIG, **changes)).params
    start = functools.partial(init_train_state, CONFIG, VOCABULARY)
    for call in (start, jax.jit(start)):
        with pytest.raises(InputError, match=f"^params: {reason}; give the configuration and"):
            call(params=params)


def test_parameters_of_another_vocabulary_are_refused():
    with pytest.raises(InputError, match=r"embedding \(\(7, 6\) there, \(8, 6\) expected\)"):
        init_train_state(CONFIG, VOCABULARY + 1, params=fresh().params)


@pytest.mark.parametrize("sizes", [(5, 1), (5, 2), (4, 3), (2, 3)])
def test_windows_of_another_batch_or_unroll_are_refused(sizes):
    text = jnp.zeros((2, *sizes), jnp.int32)
    reason = re.escape(f"windows of shape {text.shape}: with unroll=4 and batch_size=3 it ends in")
    with pytest.raises(InputError, match=reason):
        train_windows(CONFIG, fresh(), text)


@pytest.mark.parametrize("count", [0, -1])
def test_epoch_without_a_window_is_refused(text, count):
    with pytest.raises(InputError, match=f"windows_per_epoch={count}: must be at least 1"):
        train_windows(CONFIG, fresh(), text[:2], windows_per_epoch=count)


def test_beginning_of_an_average_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="rates of average_from: the configuration averages noth"):
        train_windows(CONFIG, fresh(), text[:1], {"average_from": 1.0})


def test_recorded_norm_is_that_of_the_whole_gradient_before_clipping(text):
    config = override(CONFIG, dropout=0.0, clip_norm=0.5)
    state, window = fresh(config), text[0]
    gradient: Any = jax.jit(jax.grad(window_loss, has_aux=True))(
        state.params, window[:-1], window[1:], state.rnn_state, None
    )[0]
    _, statistics = train_windows(config, state, text[:1])
    assert statistics.gradient_norm[0] > 0.5
    np.testing.assert_allclose(statistics.gradient_norm[0], optax.tree.norm(gradient), rtol=1e-5)


def test_nothing_is_compiled_again_between_epochs(text, monkeypatch):
    traced = []

    def counting(*args, **rates):
        traced.append(args)
        return train_step(*args, **rates)

    monkeypatch.setattr(train, "train_step", counting)
    config = override(CONFIG, seed=123)  # not compiled by another test
    state = fresh(config)
    for _ in range(3):
        for chunk in jnp.split(text, [2, 4]):
            state, _ = train_windows(config, state, chunk, windows_per_epoch=len(text))
    assert len(traced) == 2  # a full chunk, and the last of an epoch


def test_state_s_buffers_are_given_up_to_the_result(text):
    state = fresh()
    train_windows(CONFIG, state, text)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_compiled_epoch_has_no_host_round_trip_and_no_float64(text):
    compiled = str(train_windows.lower(CONFIG, fresh(), text).compile().as_text())
    assert "while" in compiled
    for forbidden in ("infeed", "outfeed", "send(", "recv(", "callback", "f64["):
        assert forbidden not in compiled


def test_model_learns_a_text_that_repeats():
    ids = np.tile(np.arange(VOCABULARY), 60).astype(np.int32)
    text = jnp.asarray(windows(ids, 3, 4))
    config = override(CONFIG, dropout=0.0, hidden_size=16, epochs=40, constant_epochs=40)
    epochs = jnp.tile(text, (40, 1, 1))
    _, statistics = train_windows(config, fresh(config), epochs, windows_per_epoch=len(text))
    nll = statistics.nll
    assert abs(float(nll[0]) - np.log(VOCABULARY)) < 0.2
    assert float(nll[-5:].mean()) < 0.05


@pytest.mark.parametrize("vocabulary_size", [200, 256])
def test_windows_of_bytes_train_every_row_in_use(vocabulary_size):
    ids = np.random.default_rng(0).integers(0, 9, (5, 3)).astype(np.uint8)  # the first row too
    step = jax.jit(functools.partial(train_step, CONFIG, 4))
    actual, expected = (
        step(init_train_state(CONFIG, vocabulary_size), jnp.asarray(window))
        for window in (ids, ids.astype(np.int32))
    )
    assert_same(actual[0], expected[0])


def test_what_a_seed_draws_is_what_the_records_were_made_with():
    config = override(QUICK, hidden_size=3, dropout=0.5)
    state = init_train_state(config, 5)
    first = {name: float(np.ravel(x)[0]) for name, x in named_arrays(state.params).items()}
    expected = {
        "embedding": -0.043456,
        "layers.0.input_weights": -0.079142,
        "layers.0.recurrent_weights": -0.054303,
        "layers.0.bias": 0.026608,
        "layers.1.input_weights": 0.079288,
        "layers.1.recurrent_weights": 0.070773,
        "layers.1.bias": -0.050929,
        "softmax.weights": -0.072872,
        "softmax.bias": -0.037273,
    }
    assert first == pytest.approx(expected, abs=1e-6)
    rates, key = active_rates(config.regularizers), jax.random.fold_in(state.key, 0)
    masks = sample_masks(config, rates, jnp.zeros((2, 2), jnp.int32), 5, key=key)
    assert masks.inputs is not None
    sites = [np.packbits(np.asarray(mask) != 0).tolist() for mask in (*masks.inputs, masks.output)]
    assert sites == [[125, 128], [30, 48], [82, 32]]


AWD_LIKE = {
    "output_size": 4,
    "embedding_size": 4,
    "tie_weights": True,
    "mask_each": "window",
    "input_dropout": 0.4,
    "output_dropout": 0.3,
    "dropout": 0.25,
    "word_dropout": 0.1,
    "dropconnect": 0.5,
    "weight_decay": 0.01,
    "activation_l2": 2.0,
    "temporal_activation_l2": 1.0,
    "clip_norm": 0.3,
    "decay_divisor": 1.0,
}


def trained_in_numpy(config, state, text, steps, average_from):
    """The parameters after some steps, and their mean, by the rule as it is written down."""
    rates, train = active_rates(config.regularizers), config.train
    loss = functools.partial(window_loss, rates=rates, compute=config.compute)
    gradient_of = jax.jit(jax.grad(loss, has_aux=True))
    params, rnn_state, averaged = state.params, state.rnn_state, []
    for step in range(steps):
        epoch, number = divmod(step, len(text))
        if number == 0:
            rnn_state = zero_state(params.layers, train.batch_size)
        tokens, targets = text[number][:-1], text[number][1:]
        mask_key, weight_key = jax.random.split(jax.random.fold_in(state.key, step))
        masks = sample_masks(config, rates, tokens, VOCABULARY, key=mask_key)
        gradient, (_, rnn_state) = gradient_of(
            params, tokens, targets, rnn_state, masks, weight_key=weight_key
        )
        gradient, old = (
            [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
            for tree in (gradient, params)
        )
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        scale, decay = min(1, train.clip_norm / norm), config.regularizers.weight_decay
        new = [
            p - train.learning_rate * (scale * g + decay * p)
            for p, g in zip(old, gradient, strict=True)
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), [np.float32(x) for x in new])
        if average_from and epoch + 1 >= average_from:
            averaged.append(params)
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *averaged) if averaged else params
    return params, mean


@pytest.mark.parametrize(
    "settings", [AWD_LIKE, AWD_LIKE | {"tie_weights": False}], ids=["tied", "untied"]
)
def test_a_few_steps_with_decay_and_averaging_are_those_of_a_plain_loop(text, settings):
    config = override(CONFIG, average_from=2, **settings)
    steps = len(text) + 4
    state = fresh(config)
    params, mean = trained_in_numpy(config, fresh(config), text, steps, average_from=2)
    windows = jnp.concatenate([text, text])[:steps]
    state, _ = train_windows(config, state, windows, windows_per_epoch=len(text))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, state.params, params)
    jax.tree.map(close, state.average, mean)
    assert state.model is state.average


def test_adam_moves_every_word_by_its_moments_as_it_would_with_the_whole_embedding(text):
    """A word that a window lacks still moves, by the gradients of the windows before."""
    config = override(CONFIG, optimizer="adam", learning_rate=0.01, dropout=0.0)
    of_whole = override(config, l2=1e-30)  # which has a gradient for every word, of next to none
    start, windows = fresh(config), jnp.stack([text[0], jnp.full_like(text[0], 1)])
    once, _ = train_windows(config, fresh(config), windows[:1], windows_per_epoch=2)
    twice, _ = train_windows(config, fresh(config), windows, windows_per_epoch=2)
    whole, _ = train_windows(of_whole, fresh(of_whole), windows, windows_per_epoch=2)
    assert_close_trees(twice.params, whole.params)
    read = sorted(set(np.ravel(text[0][:-1]).tolist()) - {1})
    moved = np.abs(twice.params.embedding - once.params.embedding)[np.array(read)]
    assert (moved > 1e-3).all()
    never = sorted(set(range(VOCABULARY)) - {1, *read})
    same = np.asarray(start.params.embedding)[np.array(never, int)]
    np.testing.assert_array_equal(np.asarray(twice.params.embedding)[np.array(never, int)], same)


def test_average_that_never_begins_is_the_parameters(text):
    config = override(CONFIG, average_from=12 + 2**31 // len(text))  # overflows in windows
    state, _ = train_windows(config, fresh(config), text)
    jax.tree.map(np.testing.assert_array_equal, state.average, state.params)


@pytest.mark.parametrize("begins", [1, 2, 3])
def test_average_is_the_mean_of_the_parameters_after_each_step_since_its_epoch(text, begins):
    """And until then the parameters, bit for bit; whether a setting or a number says when."""
    config = override(CONFIG, average_from=begins)
    state, at_once = fresh(config), fresh(config)
    asked = override(CONFIG, average_after_stall=5), {"average_from": np.float32(begins)}
    told, averaged = fresh(asked[0]), []
    for step in range(2 * len(text)):
        window = text[step % len(text)][None]
        state, _ = train_windows(config, state, window, windows_per_epoch=len(text))
        told, _ = train_windows(asked[0], told, window, asked[1], windows_per_epoch=len(text))
        averaged += [jax.tree.map(np.array, state.params)] * (step // len(text) + 1 >= begins)
        mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *averaged) if averaged else None
        if len(averaged) <= 1:
            jax.tree.map(np.testing.assert_array_equal, state.average, state.params)
        else:
            assert_close_trees(state.average, mean)
        assert_same(state, told)
    both = jnp.concatenate([text, text])
    at_once, _ = train_windows(config, at_once, both, windows_per_epoch=len(text))
    assert_close_trees(at_once.average, state.average)


def test_averaging_leaves_training_as_it_is_and_no_copy_where_it_is_off(text):
    off, on = fresh(), fresh(override(CONFIG, average_from=1, keep="best"))
    assert (off.average, off.best) == (None, None)
    assert len(jax.tree.leaves(on)) == len(jax.tree.leaves(off)) + 2 * len(
        jax.tree.leaves(off.params)
    )
    on, _ = train_windows(override(CONFIG, average_from=1, keep="best"), on, text)
    off, _ = train_windows(CONFIG, off, text)
    assert_close_trees(on.params, off.params)
    assert off.model is off.result is off.params
    assert on.model is on.average
    assert on.result is on.best


def test_better_of_chooses_member_by_member():
    params = fresh().params
    new, old = (
        jax.tree.map(lambda x, shift=shift: jnp.stack([x + shift, x - shift]), params)
        for shift in (1.0, 2.0)
    )
    expected = jax.tree.map(lambda a, b: np.stack([a[0], b[1]]), new, old)
    chosen = better_of(new, old, np.array([True, False]))
    jax.tree.map(np.testing.assert_array_equal, chosen, expected)


def test_every_word_decays(text):
    config = override(CONFIG, weight_decay=0.5, learning_rate=0.1, clip_norm=1e-9)
    before = fresh(config)
    after, _ = train_windows(config, jax.tree.map(jnp.copy, before), text[:1])
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, 0.95 * old, rtol=1e-5),
        after.params,
        before.params,
    )


def test_parameters_to_go_on_from_are_taken_in_the_type_of_training():
    given = jax.tree.map(lambda x: x.astype(jnp.bfloat16), fresh().params)
    state = init_train_state(CONFIG, VOCABULARY, params=given)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
