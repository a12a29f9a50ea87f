import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest

from zaremba_jax.array_types import DropoutMasks, LSTMState
from zaremba_jax.config import LARGE, MEDIUM, SMALL, ComputeConfig, ModelConfig
from zaremba_jax.model import apply, count_params, init_params, token_nll
from zaremba_jax.train import window_loss

CONFIG = ModelConfig(layers=2, hidden_size=3, init_scale=0.8)
VOCABULARY, TIME, BATCH = 5, 4, 2


@pytest.fixture
def example(float64):
    """Parameters, a window, a state and masks at which everything matters."""
    rng = np.random.default_rng(0)
    params = init_params(CONFIG, VOCABULARY, key=jax.random.key(0))
    window = jnp.asarray(rng.integers(0, VOCABULARY, (TIME + 1, BATCH)), jnp.int32)
    state = tuple(
        LSTMState(*(jnp.asarray(rng.normal(size=(BATCH, 3))) for _ in range(2))) for _ in range(2)
    )
    *inputs, output = map(jnp.asarray, 2.0 * rng.integers(0, 2, (3, TIME, BATCH, 3)))
    return params, window, state, DropoutMasks(tuple(inputs), output)


def plain(params, state, masks):
    """The same as NumPy arrays, in the reference's form."""
    pairs = [(np.asarray(s.hidden), np.asarray(s.cell)) for s in state]
    sites = [np.asarray(site) for site in (*masks.inputs, masks.output)]
    return jax.tree.map(np.array, params), pairs, sites


def test_logits_and_state_equal_a_plain_loop_over_the_paper_s_equations(example):
    params, window, state, masks = example
    logits, final = apply(params, window[:-1], state, masks)
    expected, expected_final = paper_model.run(
        *(plain(params, state, masks)[0], np.asarray(window[:-1])), *plain(params, state, masks)[1:]
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-10)
    for record, (h, c) in zip(final, expected_final, strict=True):
        np.testing.assert_allclose(record.hidden, h, rtol=1e-10)
        np.testing.assert_allclose(record.cell, c, rtol=1e-10)


def test_gradient_equals_finite_differences_of_the_plain_loop(example):
    params, window, state, masks = example
    gradient = jax.grad(window_loss, has_aux=True)(params, window[:-1], window[1:], state, masks)[0]
    numpy_params, pairs, sites = plain(params, state, masks)
    tokens, targets = np.asarray(window[:-1]), np.asarray(window[1:])
    for leaf, leaf_gradient in zip(
        jax.tree.leaves(numpy_params), jax.tree.leaves(gradient), strict=True
    ):
        for index in np.ndindex(leaf.shape):
            value, step = leaf[index], 1e-5
            sides = []
            for leaf[index] in (value + step, value - step):
                sides.append(paper_model.loss(numpy_params, tokens, targets, pairs, sites))
            leaf[index] = value
            difference = (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(leaf_gradient[index], difference, rtol=1e-5, atol=1e-8)


def test_loss_sums_over_time_and_averages_over_the_batch(example):
    params, window, state, masks = example
    loss, (nll, _) = window_loss(params, window[:-1], window[1:], state, masks)
    numpy_params, pairs, sites = plain(params, state, masks)
    tokens, targets = np.asarray(window[:-1]), np.asarray(window[1:])
    expected = paper_model.loss(numpy_params, tokens, targets, pairs, sites)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    np.testing.assert_allclose(nll, expected / TIME, rtol=1e-10)


@pytest.mark.parametrize("kernel", ["xla", "scan"])
def test_token_nll_is_that_of_a_softmax_of_the_logits(example, kernel):
    params, window, state, masks = example
    compute = ComputeConfig(kernel=kernel)
    logits, expected_state = apply(params, window[:-1], state, masks, compute)
    nll, final = token_nll(params, window[:-1], window[1:], state, masks, compute)
    log_probabilities = jax.nn.log_softmax(logits)
    expected = -jnp.take_along_axis(log_probabilities, window[1:, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll, expected, rtol=1e-10)
    jax.tree.map(np.testing.assert_array_equal, final, expected_state)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [(SMALL, 4_651_600), (MEDIUM, 19_775_200), (LARGE, 66_022_000)],
    ids=["small", "medium", "large"],
)
def test_presets_have_the_paper_s_numbers_of_parameters(preset, parameters):
    shapes = jax.eval_shape(
        lambda key: init_params(preset.model, 10_000, key=key), jax.random.key(0)
    )
    assert count_params(shapes) == parameters


def test_every_parameter_starts_uniform_in_the_given_range():
    config = ModelConfig(layers=2, hidden_size=60, init_scale=0.05)
    params = init_params(config, 500, key=jax.random.key(0))
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        assert leaf.dtype == jnp.float32
        assert float(jnp.abs(leaf).max()) <= 0.05
        deviation = 0.05 / np.sqrt(3)  # of a uniform distribution
        assert abs(float(leaf.mean())) < 5 * deviation / np.sqrt(leaf.size)
        np.testing.assert_allclose(leaf.std(), deviation, rtol=5 / np.sqrt(leaf.size))
    assert len({np.asarray(leaf).reshape(-1)[:60].tobytes() for leaf in leaves}) == len(leaves)
