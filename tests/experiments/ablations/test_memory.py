import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations.memory import (
    QUESTION,
    SYMBOLS,
    answer_loss,
    init_learner,
    lag_bins,
    right_answers,
    sample_sequences,
    task_config,
    whole_chunks,
)

LAGS = 12
LOSS = jax.jit(answer_loss)
CONFIG = task_config("tanh", LAGS, hidden_size=8)


@pytest.fixture(scope="module")
def sequences():
    return jax.tree.map(np.asarray, sample_sequences(LAGS, 4000, key=jax.random.key(0)))


def test_symbol_to_name_is_the_one_shown_first(sequences):
    assert (sequences.targets == sequences.tokens[:1]).all()
    assert sequences.targets.max() < SYMBOLS


def test_question_stands_exactly_where_an_answer_counts_and_never_first(sequences):
    np.testing.assert_array_equal(sequences.tokens == QUESTION, sequences.asked)
    assert not sequences.asked[0].any()


def test_each_lag_is_asked_with_its_chance(sequences):
    chance = 1 / (1 + np.arange(1, LAGS + 1))
    np.testing.assert_allclose(sequences.asked[1:].mean(axis=1), chance, atol=0.04)


def test_steps_between_tell_nothing_of_the_symbol(sequences):
    later = sequences.tokens[1:][~sequences.asked[1:]]
    np.testing.assert_allclose(np.bincount(later) / len(later), 1 / SYMBOLS, atol=0.01)
    same = (sequences.tokens == sequences.targets)[1:].sum() / len(later)
    assert abs(same - 1 / SYMBOLS) < 0.01


def test_network_that_has_learnt_nothing_is_at_chance(sequences):
    params = jax.tree.map(jnp.zeros_like, init_learner(CONFIG, jnp.array(0)).params)
    batch = jax.tree.map(jnp.asarray, sequences)
    np.testing.assert_allclose(LOSS(params, batch, None), np.log(SYMBOLS + 1), rtol=1e-5)
    right = right_answers(jax.tree.map(lambda x: x[None], params), batch)
    assert abs(float(right[0][batch.asked].mean()) - 1 / SYMBOLS) < 0.02


def test_nothing_but_answers_counts(sequences):
    params = init_learner(CONFIG, jnp.array(0)).params
    batch = jax.tree.map(jnp.asarray, sequences)
    other = batch._replace(targets=jnp.where(batch.asked, batch.targets, 0))
    assert LOSS(params, batch, None) == LOSS(params, other, None)


@pytest.mark.parametrize("lags", [2, 12, 100, 1000])
def test_bins_cover_every_lag_once(lags):
    covered = [lag for first, last in lag_bins(lags) for lag in range(first, last + 1)]
    assert covered == list(range(1, lags + 1))


@pytest.mark.parametrize(("steps", "trained"), [(0, 0), (1, 10), (400, 400), (401, 410)])
def test_batches_are_rounded_up_to_whole_chunks(steps, trained):
    assert whole_chunks(steps) == trained
