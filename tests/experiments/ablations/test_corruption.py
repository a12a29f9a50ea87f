import numpy as np
import pytest

from experiments.ablations.corruption import corruption_table, count_masks
from zaremba_jax.config import override
from zaremba_jax.presets import QUICK


def counts(layers, lag, **settings):
    size = {"cell": "tanh", "hidden_size": 6, "layers": layers, "init_scale": 0.5}
    return count_masks(override(QUICK, **size, unroll=lag + 1, **settings))


@pytest.mark.parametrize(("layers", "lag"), [(1, 0), (3, 8)])
def test_non_recurrent_dropout_corrupts_layers_plus_one_times_whatever_the_lag(layers, lag):
    np.testing.assert_allclose(counts(layers, lag, dropout=0.5), layers + 1, rtol=1e-4)


@pytest.mark.parametrize(("layers", "mask_each"), [(1, "window"), (3, "step")])
def test_ordinary_dropout_corrupts_once_more_at_every_step(layers, mask_each):
    actual = counts(layers, 6, dropout=0.5, hidden_dropout=0.5, mask_each=mask_each)
    np.testing.assert_allclose(actual, layers + 1 + np.arange(7), rtol=1e-4)


def test_without_dropout_nothing_is_corrupted():
    np.testing.assert_allclose(counts(2, 4, dropout=0.0), 0, atol=1e-5)


def test_table_reaches_two_hundred_steps():
    assert corruption_table((1, 100, 200)) == {
        "ordinary dropout": {"1": 4, "100": 103, "200": 203},
        "non-recurrent dropout": {"1": 3, "100": 3, "200": 3},
    }
