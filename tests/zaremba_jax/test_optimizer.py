import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zaremba_jax.config import override
from zaremba_jax.optimizer import learning_rate, make_optimizer, make_schedule
from zaremba_jax.presets import PRESETS, QUICK, SMALL

# Written out by hand from section 4.1, to six digits.
RATES = {
    "small": """
        1 1 1 1
        0.5 0.25 0.125 0.0625 0.03125 0.015625 0.0078125 0.00390625 0.001953125
    """,
    "medium": """
        1 1 1 1 1 1
        0.833333 0.694444 0.578704 0.482253 0.401878 0.334898 0.279082 0.232568 0.193807
        0.161506 0.134588 0.112157 0.0934639 0.0778866 0.0649055 0.0540879 0.0450732
        0.0375610 0.0313009 0.0260841 0.0217367 0.0181139 0.0150949 0.0125791 0.0104826
        0.00873550 0.00727958 0.00606632 0.00505526 0.00421272 0.00351060 0.00292550 0.00243792
    """,
    "large": """
        1 1 1 1 1 1 1 1 1 1 1 1 1 1
        0.869565 0.756144 0.657516 0.571753 0.497177 0.432328 0.375937 0.326902 0.284262
        0.247185 0.214943 0.186907 0.162528 0.141329 0.122894 0.106865 0.0929259 0.0808051
        0.0702653 0.0611003 0.0531307 0.0462006 0.0401744 0.0349343 0.0303776 0.0264153
        0.0229699 0.0199738 0.0173685 0.0151031 0.0131331 0.0114201 0.00993050 0.00863522
        0.00750889 0.00652947 0.00567780 0.00493722 0.00429323 0.00373324 0.00324630
    """,
    "quick": "1 1 1 0.5 0.25 0.125",
    "awd": 500 * "0.428571 ",
}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_epoch_s_rate_is_the_one_written_out_by_hand(preset):
    by_hand = [float(rate) for rate in RATES[preset.name].split()]
    computed = [learning_rate(preset.train, epoch) for epoch in range(1, preset.train.epochs + 1)]
    np.testing.assert_allclose(computed, by_hand, rtol=5e-6)


def updates(config, gradients, windows_per_epoch=2):
    """What the optimizer adds to the parameters for each of successive gradients."""
    optimizer = make_optimizer(config, windows_per_epoch)
    state = optimizer.init(gradients[0])
    results = []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state)
        results.append(update)
    return results


def test_rate_changes_at_the_first_window_of_an_epoch_and_nowhere_else():
    config = dataclasses.replace(SMALL.train, epochs=6)
    gradient = {"w": jnp.ones(1)}
    steps = [float(-update["w"][0]) for update in updates(config, [gradient] * 14)]
    # 4 epochs of 2 windows at the full rate, 2 decaying ones, and the last one's rate after them.
    np.testing.assert_allclose(steps, [1] * 8 + [0.5] * 2 + [0.25] * 4, rtol=1e-6)


@given(arrays(np.float32, 4, elements=st.floats(-1e4, 1e4, width=32)), st.floats(0.1, 100))
def test_clipping_never_exceeds_its_norm_and_leaves_smaller_gradients_alone(values, clip_norm):
    config = dataclasses.replace(SMALL.train, clip_norm=clip_norm)
    gradient = {"a": jnp.asarray(values[:1]), "b": jnp.asarray(values[1:])}
    norm = float(optax.tree.norm(gradient))
    (update,) = updates(config, [gradient])
    stepped = np.concatenate([update["a"], update["b"]])
    if norm < clip_norm:
        np.testing.assert_array_equal(-stepped, values)
    else:
        np.testing.assert_allclose(np.linalg.norm(stepped), clip_norm, rtol=1e-4)
        np.testing.assert_allclose(-stepped * norm / clip_norm, values, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 9), st.floats(1, 8), st.floats(0.01, 9), st.integers(1, 12))
def test_a_rate_never_increases_and_is_the_device_s(constant, divisor, first, epochs):
    settings = {"constant_epochs": constant, "decay_divisor": divisor, "epochs": epochs}
    config = override(QUICK, learning_rate=first, **settings).train
    rates = [learning_rate(config, epoch) for epoch in range(1, epochs + 1)]
    assert rates[0] == (first if constant else first / divisor)
    assert rates == sorted(rates, reverse=True)
    assert rates[:constant] == [first] * len(rates[:constant])
    stays = [*rates, *[rates[-1]] * (15 - epochs)]
    np.testing.assert_allclose(make_schedule(config)(jnp.arange(15)), stays, rtol=1e-5)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_device_s_rate_is_the_one_that_is_reported(preset):
    schedule = make_schedule(preset.train)
    reported = [learning_rate(preset.train, epoch + 1) for epoch in range(preset.train.epochs)]
    np.testing.assert_allclose(jax.vmap(schedule)(jnp.arange(len(reported))), reported, rtol=2e-6)


def test_rate_vanishes_after_any_number_of_epochs():
    assert learning_rate(SMALL.train, 2000) == 0


def test_first_rate_replaces_that_of_the_configuration_and_all_later_ones_in_proportion():
    config = override(QUICK, learning_rate=0.5, constant_epochs=1, decay_divisor=2.0).train
    gradient = jnp.ones(())
    optimizer = make_optimizer(config, 1, first_rate=0.2)
    state, steps = optimizer.init(gradient), []
    for _ in range(2):
        update, state = optimizer.update(gradient, state)
        steps.append(update)
    np.testing.assert_allclose(steps, [-0.2, -0.1], rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.1, 100.0], ids=["clipped", "not clipped"])
def test_weight_decay_is_added_after_clipping(clip_norm):
    config = dataclasses.replace(SMALL.train, clip_norm=clip_norm, learning_rate=0.5)
    gradient, params = {"w": jnp.asarray([3.0, -4.0])}, {"w": jnp.asarray([10.0, 20.0])}
    with_decay = make_optimizer(config, 1, weight_decay=0.01)
    update: Any
    update, state = with_decay.update(gradient, with_decay.init(params), params)
    scale = min(1, clip_norm / 5)
    np.testing.assert_allclose(
        update["w"], -0.5 * (scale * np.array([3, -4]) + 0.01 * np.array([10, 20])), rtol=1e-6
    )
    without = make_optimizer(config, 1)
    assert str(without.update(gradient, without.init(params), params)[1]) == str(state)


def test_adam_is_that_of_its_paper_after_clipping_with_decay_beside_its_steps():
    """Algorithm 1 of Kingma & Ba (2015), with the decay of Loshchilov & Hutter (2019)."""
    settings = {"learning_rate": 0.01, "clip_norm": 2.0, "decay_divisor": 4.0}
    config = override(SMALL, optimizer="adam", constant_epochs=1, **settings).train
    optimizer = make_optimizer(config, 2, weight_decay=0.1)
    generator = np.random.default_rng(0)
    params: Any = {"w": jnp.asarray(generator.normal(size=5), jnp.float32)}
    expected, state = np.asarray(params["w"], np.float64), optimizer.init(params)
    mean, square = np.zeros(5), np.zeros(5)
    for step in range(1, 7):
        gradient = generator.normal(size=5) * step
        update, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, update)
        gradient *= min(1, 2 / np.linalg.norm(gradient))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        rate = 0.01 / 4 ** ((step - 1) // 2)  # a quarter of it in each epoch of two windows
        expected -= rate * (direction + 0.1 * expected)
        np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("estimates", "rate"),
    [
        ([], 1),
        ([9.0, 9.0, 9.0], 1),  # epochs of the constant rate may stall: here two of three
        ([9.0, 9.0, 9.0, 9.0], 0.5),
        ([9.0, 8.0, 7.0, 8.0], 1),
        ([9.0, 8.0, 7.0, 8.0, 7.0], 0.5),  # as good is no better
        ([9.0, 8.0, 7.0, 8.0, 7.0, 7.5], 0.5),  # counted anew since the last division
        ([9.0, 8.0, 7.0, 8.0, 7.0, 7.5, 7.5], 0.25),
        ([9.0, 8.0, 7.0, 8.0, 7.0, 6.0, 6.5], 0.5),
    ],
)
def test_rate_is_divided_after_each_stall_past_the_constant_epochs(estimates, rate):
    config = override(QUICK, decay_when_stalled=2, constant_epochs=4, decay_divisor=2.0).train
    assert learning_rate(config, len(estimates) + 1, estimates) == rate
    assert make_schedule(config, rate)(99) == rate
