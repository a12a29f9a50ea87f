import pytest

from zaremba_jax.config import override
from zaremba_jax.estimates import averaged_from, best_epoch, is_out_of_patience
from zaremba_jax.presets import QUICK


@pytest.mark.parametrize(
    ("settings", "estimates", "epoch"),
    [
        ({}, [9.0] * 20, 0),
        ({"average_from": 4}, [], 4),
        ({"average_after_stall": 2}, [9.0, 8.0, 7.0, 8.0, 7.5], 0),  # none above 9 or 8
        ({"average_after_stall": 2}, [9.0, 8.0, 7.0, 8.5, 8.5], 6),  # the fifth is above 8
        ({"average_after_stall": 2}, [9.0, 8.0, 7.0, 8.5, 8.5, 1.0, 1.0], 6),  # once and for all
        ({"average_after_stall": 2}, [9.0, 99.0, 99.0, 99.0], 5),  # the first that can stall
        ({"average_after_stall": 2}, [9.0, 9.0, 9.0, 9.0], 0),  # as good is not worse
        ({"average_after_stall": 1, "average_from": 7}, [9.0, 1.0, 10.0], 4),
        ({"average_after_stall": 1, "average_from": 2}, [9.0, 1.0, 10.0], 2),
    ],
)
def test_averaging_begins_at_its_epoch_or_after_the_first_stall(settings, estimates, epoch):
    config = override(QUICK, **settings).train
    assert averaged_from(config, estimates) == epoch


@pytest.mark.parametrize(
    ("patience", "estimates", "is_out"),
    [
        (2, [], False),
        (2, [9.0], False),
        (2, [9.0, 8.0, 8.0], False),
        (2, [9.0, 8.0, 8.0, 8.5], True),
        (2, [9.0, 9.0, 8.0], False),
        (1, [9.0, 8.0], False),
        (1, [8.0, 8.0], True),
    ],
)
def test_patience_counts_the_epochs_since_the_best(patience, estimates, is_out):
    assert is_out_of_patience(override(QUICK, patience=patience).train, estimates) is is_out
    assert not is_out_of_patience(QUICK.train, estimates)


def test_best_epoch_is_the_first_of_the_lowest():
    assert [best_epoch(estimates) for estimates in ([9.0], [9.0, 8.0, 8.0])] == [1, 2]
