import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zaremba_jax.cells import CELLS
from zaremba_jax.config import ComputeConfig, ModelConfig, override
from zaremba_jax.errors import InputError
from zaremba_jax.model import Predictor, apply, count_params, init_params, softmax_weights
from zaremba_jax.presets import AWD, LARGE, MEDIUM, QUICK, SMALL
from zaremba_jax.regularizers import active_rates, drop_weights, expected_masks, sample_masks
from zaremba_jax.rnn import drop, zero_state
from zaremba_jax.train import window_loss

VOCABULARY, TIME, BATCH, HIDDEN = 5, 4, 2, 3
EVERYTHING = {
    "dropout": 0.5,
    "hidden_dropout": 0.25,
    "word_dropout": 0.25,
    "zoneout_hidden": 0.5,
    "dropconnect": 0.25,
    "l1": 0.1,
    "l2": 0.05,
    "activation_l2": 2.0,
    "temporal_activation_l2": 3.0,
}
RUNS = {
    "paper": {"dropout": 0.5},
    "lstm": dict(
        **EVERYTHING, update_dropout=0.5, zoneout_cell=0.25, embedding_size=2, second_bias=True
    ),
    "gru": dict(**EVERYTHING, cell="gru", update_dropout=0.5, tie_weights=True),
    "tanh": dict(**EVERYTHING, cell="tanh", mask_each="window", embedding_size=4),
    "awd": dict(
        **EVERYTHING,
        input_dropout=0.25,
        output_dropout=0.25,
        mask_each="window",
        embedding_size=2,
        output_size=2,
        tie_weights=True,
    ),
    "last": {"dropout": 0.5, "input_dropout": 0.0, "output_size": 4},
}


@pytest.fixture(params=RUNS)
def example(request, float64):
    """A configuration, parameters, a window, a state and masks at which everything matters."""
    small = override(QUICK, layers=2, hidden_size=HIDDEN, init_scale=0.8, unroll=TIME)
    config = override(small, **RUNS[request.param])
    rng = np.random.default_rng(0)
    params = init_params(config.model, VOCABULARY, key=jax.random.key(0))
    window = jnp.asarray(rng.integers(0, VOCABULARY, (TIME + 1, BATCH)), jnp.int32)
    state = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape)), zero_state(params.layers, BATCH)
    )
    rates = active_rates(config.regularizers)
    masks = sample_masks(config, rates, window[:-1], VOCABULARY, key=jax.random.key(1))
    return config, params, window, state, masks


def plain(params, window, state, masks):
    """The same as NumPy arrays, in the form that `paper_model` takes."""
    state = [[np.asarray(part) for part in vars(layer).values()] for layer in state]
    params, window, masks = jax.tree.map(np.array, (params, window, masks))
    return params, window[:-1], window[1:], state, masks


def weight_masks(rates, params, key):
    """The factors that DropConnect applies to each layer's recurrent weights."""
    dropped = drop_weights(rates, params, key=key)
    return [
        np.asarray(a.recurrent_weights / b.recurrent_weights)
        for a, b in zip(dropped.layers, params.layers, strict=True)
    ]


def test_logits_and_state_equal_a_plain_loop_over_the_papers_equations(example):
    _, params, window, state, masks = example
    logits, final = apply(params, window[:-1], state, masks)
    numpy_params, tokens, _, numpy_state, numpy_masks = plain(params, window, state, masks)
    expected = paper_model.run(numpy_params, tokens, numpy_state, numpy_masks)
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-10)
    for record, parts in zip(final, expected.state, strict=True):
        for part, expected_part in zip(vars(record).values(), parts, strict=True):
            np.testing.assert_allclose(part, expected_part, rtol=1e-10)


def test_expectation_of_zoneout_equals_a_plain_loop_in_which_units_remain_in_part():
    config = override(QUICK, layers=2, hidden_size=HIDDEN, zoneout_hidden=0.25, zoneout_cell=0.5)
    params = init_params(config.model, VOCABULARY, key=jax.random.key(0))
    window = jnp.asarray([[0, 1], [2, 3], [4, 0], [1, 1]], jnp.int32)
    state, masks = zero_state(params.layers, 2), expected_masks(config)
    logits, _ = apply(params, window[:-1], state, masks)
    numpy_params, tokens, _, numpy_state, numpy_masks = plain(params, window, state, masks)
    expected = paper_model.run(numpy_params, tokens, numpy_state, numpy_masks).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(logits, apply(params, window[:-1], state)[0], atol=1e-6)


def test_loss_and_gradient_equal_a_plain_loop_and_its_finite_differences(example):
    config, params, window, state, masks = example
    rates, key = active_rates(config.regularizers), jax.random.key(2)
    run = jax.jit(jax.value_and_grad(functools.partial(window_loss, rates=rates), has_aux=True))
    (loss, (nll, _)), gradient = run(params, window[:-1], window[1:], state, masks, weight_key=key)
    numpy_params, *data = plain(params, window, state, masks)
    dropped = weight_masks(rates, params, key)

    def expected(rates=rates):
        return paper_model.loss(numpy_params, *data, rates=rates, weight_masks=dropped)

    np.testing.assert_allclose(loss, expected(), rtol=1e-10)
    np.testing.assert_allclose(nll, expected(rates={}) / TIME, rtol=1e-10)
    for leaf, leaf_gradient in zip(
        jax.tree.leaves(numpy_params), jax.tree.leaves(gradient), strict=True
    ):
        for index in np.ndindex(leaf.shape):
            value, step = leaf[index], 1e-5
            sides = []
            for leaf[index] in (value + step, value - step):
                sides.append(expected())
            leaf[index] = value
            difference = (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(leaf_gradient[index], difference, rtol=1e-5, atol=1e-8)


def test_token_nll_is_that_of_a_softmax_of_the_logits_whatever_the_kernel(example):
    _, params, window, state, masks = example
    logits, expected_state = apply(params, window[:-1], state, masks)
    readable = ComputeConfig(kernel="scan")
    nll, final = Predictor(params, masks, readable).token_nll(window[:-1], window[1:], state)
    log_probabilities = jax.nn.log_softmax(logits)
    expected = -jnp.take_along_axis(log_probabilities, window[1:, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll, expected, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), final, expected_state)


def test_unrolled_network_gives_the_last_outputs_before_and_after_dropout(example):
    _, params, window, state, masks = example
    unrolled = Predictor(params, masks).unroll(window[:-1], state)
    np.testing.assert_array_equal(unrolled.outputs[-1], unrolled.state[-1].hidden)
    np.testing.assert_array_equal(unrolled.dropped, drop(unrolled.outputs, masks.output))


def test_parameters_of_half_precision_are_refused(example):
    _, params, window, state, _ = example
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    with pytest.raises(InputError, match=r"parameters of bfloat16: .*precision=.bfloat16"):
        apply(half, window[:-1], state)


@pytest.fixture(scope="module")
def reader():
    """Logits of a text [time, streams], and the state after it."""
    config = override(QUICK, layers=2, hidden_size=HIDDEN, init_scale=0.8)
    params = init_params(config.model, VOCABULARY, key=jax.random.key(0))
    compiled = jax.jit(apply)

    def read(tokens, state=None):
        tokens = jnp.asarray(tokens, jnp.int32)
        return compiled(params, tokens, state or zero_state(params.layers, tokens.shape[1]))

    return read


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


TEXTS = arrays(np.int32, (6, 2), elements=st.integers(0, VOCABULARY - 1))


@given(TEXTS, st.permutations([1, 2, 3]))
def test_a_text_read_in_windows_of_any_length_is_that_read_at_once(reader, text, lengths):
    state, parts = None, []
    for window in np.split(text, np.cumsum(lengths)[:-1]):
        logits, state = reader(window, state)
        parts.append(logits)
    assert_close((np.concatenate(parts), state), reader(text))


@given(TEXTS)
def test_streams_do_not_know_of_each_other(reader, text):
    read = reader(text)

    def of_streams(streams):
        return jax.tree.map(lambda x: x[..., streams, :], read)

    assert_close(reader(text[:, ::-1]), of_streams(np.array([1, 0])))
    assert_close(reader(text[:, :1]), of_streams(np.array([0])))


@given(TEXTS, st.integers(0, 5), st.integers(1, VOCABULARY - 1))
def test_a_token_changes_the_logits_from_its_own_step_on_and_none_before(reader, text, t, shift):
    changed = text.copy()
    changed[t, 0] = (changed[t, 0] + shift) % VOCABULARY
    before, after = reader(text)[0], reader(changed)[0]
    np.testing.assert_array_equal(before[:t], after[:t])
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (np.abs(before[t:, 0] - after[t:, 0]).max(axis=-1) > 0).all()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [(SMALL, 4_651_600), (MEDIUM, 19_775_200), (LARGE, 66_022_000)],
    ids=["small", "medium", "large"],
)
def test_presets_have_the_paper_s_numbers_of_parameters(preset, parameters):
    assert count(preset.model, 10_000) == parameters


def count(config, vocabulary_size):
    shapes = jax.eval_shape(
        lambda key: init_params(config, vocabulary_size, key=key), jax.random.key(0)
    )
    return count_params(shapes)


@pytest.mark.parametrize(("cell", "gates"), [("lstm", 4), ("gru", 3), ("tanh", 1)])
@pytest.mark.parametrize("features", [0, 7])
def test_first_layer_reads_as_many_features_as_the_embedding_has(cell, gates, features):
    config = ModelConfig(
        layers=3, hidden_size=10, init_scale=0.1, cell=cell, embedding_size=features
    )
    params = init_params(config, 20, key=jax.random.key(0))
    features = features or 10
    assert params.embedding.shape == (20, features)
    assert [p.input_weights.shape[0] for p in params.layers] == [features, 10, 10]
    assert all(p.cell == cell for p in params.layers)
    layer = gates * 10 * (10 + 1)
    inputs = gates * 10 * (features + 10 + 10)
    assert count_params(params) == 20 * features + 3 * layer + inputs + (10 + 1) * 20


def test_last_layer_of_another_size_is_that_size_all_through():
    config = ModelConfig(layers=3, hidden_size=10, output_size=4, init_scale=0.1)
    params = init_params(config, 20, key=jax.random.key(0))
    assert [p.input_weights.shape for p in params.layers] == [(10, 40), (10, 40), (10, 16)]
    assert [p.recurrent_weights.shape for p in params.layers] == [(10, 40), (10, 40), (4, 16)]
    assert params.softmax.weights is not None
    assert params.softmax.weights.shape == (4, 20)
    assert [state.hidden.shape for state in zero_state(params.layers, 3)] == [(3, 10)] * 2 + [
        (3, 4)
    ]


def test_awd_is_no_larger_than_its_source():
    assert 24.1e6 < count(AWD.model, 10_000) < 24.3e6


def test_tied_softmax_is_the_transposed_embedding_and_counts_once():
    untied = ModelConfig(layers=1, hidden_size=10, init_scale=0.1)
    tied = dataclasses.replace(untied, tie_weights=True)
    assert count(untied, 20) - count(tied, 20) == 10 * 20
    params = init_params(tied, 20, key=jax.random.key(0))
    np.testing.assert_array_equal(softmax_weights(params), params.embedding.T)


def test_gradient_of_a_tied_embedding_is_the_sum_of_those_of_its_two_uses():
    config = ModelConfig(layers=1, hidden_size=HIDDEN, init_scale=0.8, tie_weights=True)
    tied = init_params(config, VOCABULARY, key=jax.random.key(0))
    softmax = dataclasses.replace(tied.softmax, weights=softmax_weights(tied))
    untied = dataclasses.replace(tied, softmax=softmax)
    tokens = jnp.asarray([[0, 1], [2, 0]], jnp.int32)
    state = zero_state(tied.layers, 2)

    def gradient(params):
        return jax.grad(window_loss, has_aux=True)(params, tokens, tokens, state, None)[0]

    d_tied, d_untied = jax.jit(gradient)(tied), jax.jit(gradient)(untied)
    expected = d_untied.embedding + d_untied.softmax.weights.T
    np.testing.assert_allclose(d_tied.embedding, expected, rtol=1e-5, atol=1e-7)
    assert np.all(d_untied.embedding[:3] != 0)
    assert np.all(d_untied.softmax.weights != 0)


@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_starts_uniform_in_the_given_range(cell):
    config = ModelConfig(layers=2, hidden_size=60, init_scale=0.05, cell=cell, second_bias=True)
    params = init_params(config, 500, key=jax.random.key(0))
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        assert leaf.dtype == jnp.float32
        assert float(jnp.abs(leaf).max()) <= 0.05
        deviation = 0.05 / np.sqrt(3)  # of a uniform distribution
        assert abs(float(leaf.mean())) < 5 * deviation / np.sqrt(leaf.size)
        np.testing.assert_allclose(leaf.std(), deviation, rtol=5 / np.sqrt(leaf.size))
    assert len({np.asarray(leaf).reshape(-1)[:60].tobytes() for leaf in leaves}) == len(leaves)


def test_readable_reference_is_differentiated_forward_too():
    config = ModelConfig(layers=1, hidden_size=HIDDEN, init_scale=0.8)
    params = init_params(config, VOCABULARY, key=jax.random.key(0))
    tokens, state = jnp.asarray([[0, 1], [2, 0]], jnp.int32), zero_state(params.layers, 2)

    def total(params):
        logits, _ = apply(params, tokens, state, compute=ComputeConfig(kernel="scan"))
        return (logits**2).sum()

    direction = jax.tree.map(jnp.ones_like, params)
    _, along = jax.jit(lambda: jax.jvp(total, (params,), (direction,)))()
    gradient = jax.jit(jax.grad(total))(params)
    expected = sum(leaf.sum() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(along, expected, rtol=1e-4)
