"""What is said of a run's rates and estimates, and what the estimates decide for each model."""

from types import SimpleNamespace
from typing import Any

import invoke
import numpy as np
import pytest

from experiments.training import remarks
from experiments.training.journal import Journal
from experiments.training.run import decided_rates, is_finished, words_per_second
from zaremba_jax.config import override
from zaremba_jax.presets import PRESETS, QUICK

GETS_WORSE = [60.0, 50.0, 40.0, 41.0]
STALLED = [9.0, 9.0] + [10.0] * 10


def run_of(*estimates, **settings) -> Any:
    """A run of one window an epoch, with a model for each list of estimates."""
    config = override(QUICK, **settings)
    history = [
        {"valid_perplexity_estimate": 0.0, "valid_perplexity_estimates": of_models}
        for of_models in map(list, zip(*estimates, strict=True))
    ]
    configs = [override(config, learning_rate=rate) for rate in (1.0, 0.4)[: len(estimates)]]
    journal = Journal([0.0] * len(estimates), history=history)
    return SimpleNamespace(
        config=configs[0], all_configs=configs, journal=journal, step=len(history), windows=[0]
    )


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_no_preset_has_rates_at_which_nothing_changes(preset):
    run: Any = SimpleNamespace(config=preset, step=0, windows=[0], journal=Journal([0.0]))
    assert not list(remarks.on_schedule(run))


def test_schedule_that_ends_at_rates_where_nothing_changes_is_said_before():
    (line,) = remarks.on_schedule(run_of([50.0], epochs=20))
    assert line.startswith("from epoch 13 of 20 on, the learning rate is below a thousandth of the")
    assert not list(remarks.on_schedule(run_of([50.0] * 20, epochs=20)))
    (line,) = remarks.on_schedule(run_of([50.0], epochs=10**9))  # not one by one
    assert line.startswith(f"from epoch 13 of {10**9} on")


def test_stalls_that_bring_the_rates_of_all_members_that_low_are_said_once():
    settings = {"epochs": 30, "constant_epochs": 1, "decay_when_stalled": 1}
    for models, remedy in ((2, "give fewer --epochs"), (1, "--patience ends such a run")):
        runs = (
            run_of(*(STALLED[:n], STALLED[1 : n + 1])[:models], **settings)
            for n in range(1, len(STALLED))
        )
        *before, last = (list(remarks.on_epoch(run)) for run in runs)
        assert before == [[]] * 10
        assert [line.endswith(remedy) for line in last] == [True]


def test_program_says_so_where_its_rates_end_or_have_come_to_that(folder):
    low = (*invoke.SINGLE, "--decay_divisor=2000", "--learning_rate=1e-30")
    scheduled = invoke.run(*low, "--constant_epochs=1", "--epochs=2", "--workdir=scheduled")
    assert scheduled.status == 0, scheduled.err
    assert 0 < scheduled.out.index("from epoch 2 of 2 on, the") < scheduled.out.index("valid")
    stalled = invoke.run(*low, "--decay_when_stalled=1", "--epochs=3", "--workdir=stalled")
    assert stalled.out.count("from here on, the learning rate is below a thousandth") == 1


def test_better_epoch_than_the_last_is_said_with_both_figures_unless_it_is_kept():
    (line,) = remarks.on_end(run_of(GETS_WORSE, epochs=4))
    assert line.startswith("the validation estimate was 40.00 after epoch 3 and is 41.00 now: with")
    assert "--keep=best" in line
    (line,) = remarks.on_end(run_of([9.0, 8.0, 7.0, 7.0], GETS_WORSE, epochs=4))
    assert "is 41.00 now (learning_rate 0.4): with --keep=best" in line
    (line,) = remarks.on_end(run_of([*GETS_WORSE[:3], 42.0], GETS_WORSE, epochs=4))
    assert "is 42.00 now (learning_rate 1.0; 2 got worse): with --keep=best" in line
    assert not list(remarks.on_end(run_of(GETS_WORSE, epochs=4, keep="best")))
    assert not list(remarks.on_end(run_of([*GETS_WORSE[:3], 40.3], epochs=4)))


def test_run_out_of_patience_is_finished_and_says_so():
    run = run_of(GETS_WORSE, epochs=9, keep="best", patience=1)
    assert is_finished(run)
    (line,) = remarks.on_end(run)
    assert line == (
        "stopped after epoch 4 of 9: the validation estimate has not improved since epoch 3"
        " (--patience=1)"
    )
    assert not is_finished(run_of(GETS_WORSE, epochs=9, patience=2))
    within = run_of(GETS_WORSE, epochs=9, patience=1)
    within.windows, within.step = [0, 0], 9
    assert not is_finished(within)


def test_each_member_has_the_rate_that_its_own_estimates_decide():
    settings = {"epochs": 9, "constant_epochs": 1, "decay_when_stalled": 2}
    run = run_of([9.0, 9.0, 9.0], [9.0, 8.0, 7.0], **settings)
    np.testing.assert_allclose(decided_rates(run, [0, 1])["learning_rate"], [0.5, 0.4])
    assert not decided_rates(run_of([9.0]), [0])


def test_speed_is_that_of_all_models_together():
    run = run_of([9.0], [9.0], batch_size=3, unroll=5)
    run.journal.add_windows({0: 1.0, 1: 1.0}, 4.0)
    assert words_per_second(run, 7) == 2 * 7 * 3 * 5 / 4
