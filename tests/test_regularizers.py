import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.config import RegularizerConfig
from zaremba_jax.regularizers import sample_masks

SHAPE = (11, 7, 13)


def masks_of(rate, shape=SHAPE, layers=2, seed=0, step=0):
    key = jax.random.fold_in(jax.random.key(seed), step)
    return sample_masks(RegularizerConfig(dropout=rate), shape, layers, key=key)


def test_rate_zero_is_no_mask():
    assert masks_of(0.0) is None


@given(st.floats(0.01, 0.95), st.integers(1, 4))
def test_each_site_of_layers_plus_one_holds_zeros_and_the_inverse_of_the_kept_share(rate, layers):
    masks = masks_of(rate, layers=layers)
    assert masks is not None
    assert len(masks.inputs) == layers
    for site in (*masks.inputs, masks.output):
        assert site.shape == SHAPE
        values = np.unique(site)
        assert np.isclose(values[:, None], [0, 1 / (1 - rate)], rtol=1e-6).any(axis=1).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.65])
def test_masks_average_to_one(rate):
    masks = masks_of(rate, shape=(50, 40, 100))
    assert masks is not None
    for site in (*masks.inputs, masks.output):
        deviation = np.sqrt(rate / (1 - rate) / site.size)
        assert abs(float(site.mean()) - 1) < 5 * deviation


def test_masks_differ_between_sites_layers_steps_time_and_examples():
    first, second = masks_of(0.5, step=0), masks_of(0.5, step=1)
    assert first is not None
    assert second is not None
    sites = [np.asarray(site) for m in (first, second) for site in (*m.inputs, m.output)]
    slices = [site.reshape(-1) for site in sites]
    assert len({s.tobytes() for s in slices}) == len(slices) == 6
    rows = sites[0].reshape(-1, SHAPE[-1])  # one a time step and example
    assert len({row.tobytes() for row in rows}) > 0.9 * len(rows)


def test_one_key_and_one_step_give_every_mask_again():
    first, again, other = masks_of(0.3), masks_of(0.3), masks_of(0.3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, other)
    assert not any(jax.tree.leaves(same))
