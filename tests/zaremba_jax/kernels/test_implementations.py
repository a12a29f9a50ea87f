"""Which implementation runs a layer, and what it falls back to."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from layer_examples import assert_same, make, of_layer

from zaremba_jax.array_types import RecurrentMasks
from zaremba_jax.cells import CELLS, lstm
from zaremba_jax.config import ComputeConfig
from zaremba_jax.kernels import implementations, pallas_tpu
from zaremba_jax.kernels.implementations import IMPLEMENTATIONS, choose
from zaremba_jax.rnn import unroll_layer

PALLAS = ComputeConfig(kernel="pallas")


def chosen(compute, platform=None, **layer):
    (params, _, state), masks, _ = make(2, 1, 2, 3, **layer)
    return choose(compute, params, state, masks, platform)


def test_pallas_serves_the_lstm_without_noise_through_time_and_all_else_falls_to_custom_vjp():
    noise = "does not support noise through time"
    for platform in ("tpu", None):
        assert chosen(PALLAS, platform) == ("pallas", None)
        assert chosen(PALLAS, platform, names=["hidden"]) == ("custom_vjp", noise)
        assert chosen(PALLAS, platform, cell="gru") == ("custom_vjp", "supports only the LSTM")
    for platform in ("cpu", "gpu"):
        assert chosen(PALLAS, platform) == ("custom_vjp", "needs a TPU")
    assert chosen(ComputeConfig(kernel="auto"), "tpu") == ("custom_vjp", None)
    for name in ("scan", "custom_vjp"):
        compute = ComputeConfig(kernel=name)
        assert chosen(compute, "cpu", cell="gru", names=["hidden"]) == (name, None)


def test_record_without_any_mask_is_no_noise(monkeypatch):
    arguments, *_ = make(2, 1, 2, 3)
    (params, _, state), nothing = arguments, RecurrentMasks()
    assert choose(PALLAS, params, state, nothing) == ("pallas", None)
    monkeypatch.setattr(implementations, "cell_layer", None)  # which is the slower
    for kernel in ("custom_vjp", "pallas"):
        compute = ComputeConfig(kernel=kernel)
        results = (unroll_layer(*arguments, masks, compute) for masks in (nothing, None))
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_layer_that_pallas_cannot_serve_is_run_as_by_custom_vjp_and_never_without_its_masks():
    arguments, masks, _ = make(2, 1, 2, 3, names=["hidden"])
    results = (
        unroll_layer(*arguments, masks, ComputeConfig(kernel=name))
        for name in ("pallas", "custom_vjp")
    )
    jax.tree.map(np.testing.assert_array_equal, *results)
    with pytest.raises(AssertionError):
        IMPLEMENTATIONS["pallas"](*arguments, masks, "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_machine_without_a_tpu_runs_what_custom_vjp_does(precision):
    arguments, _, weights = make(2, 1, 2, 3)

    def run(name):
        compute = ComputeConfig(kernel=name, precision=precision)
        layer = functools.partial(unroll_layer, compute=compute)
        return jax.jit(functools.partial(of_layer, layer))(arguments, weights)

    jax.tree.map(np.testing.assert_array_equal, run("pallas"), run("custom_vjp"))


def test_weights_without_room_on_a_tpu_s_chip_fall_to_custom_vjp_there(monkeypatch):
    arguments, *_ = make(2, 1, 2, 3)

    def count(platform):
        layer = functools.partial(unroll_layer, compute=PALLAS)
        text = jax.jit(layer).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        return text.count("tpu_custom_call")

    assert (count("tpu"), count("cuda"), count("cpu")) == (1, 0, 0)
    monkeypatch.setattr(pallas_tpu, "fits", lambda *sizes, **itemsize: False)
    assert count("tpu") == 0
    assert chosen(PALLAS, "tpu") == ("custom_vjp", "has no room for W_h on this chip")


def test_room_on_the_chip_is_asked_for_by_streams_units_and_bytes_of_a_weight(monkeypatch):
    asked = []

    def record(batch, hidden, itemsize):
        asked.append((batch, hidden, itemsize))
        return True

    monkeypatch.setattr(pallas_tpu, "fits", record)
    for precision in ("float32", "bfloat16"):
        chosen(ComputeConfig(kernel="pallas", precision=precision))
    assert asked == [(1, 3, 4), (1, 3, 2)]


def test_lstm_without_masks_takes_the_backward_pass_of_its_own(monkeypatch):
    calls = []

    def recorded(name):
        original = getattr(implementations, name)
        monkeypatch.setattr(
            implementations, name, lambda *args: calls.append(name) or original(*args)
        )

    recorded("lstm_layer")
    recorded("cell_layer")
    arguments, masks, _ = make(2, 1, 2, 3, names=["hidden"])
    for compute in (ComputeConfig(), ComputeConfig(kernel="scan")):
        unroll_layer(*arguments, None, compute)
        unroll_layer(*arguments, masks, compute)
    assert calls == ["lstm_layer", "cell_layer"]


@pytest.mark.parametrize("kernel", ["custom_vjp", "pallas"])
def test_cell_that_shares_the_lstm_s_state_is_run_by_its_own_equations(kernel, monkeypatch):
    def halved(*arguments):
        new = lstm(*arguments)
        return dataclasses.replace(new, hidden=new.hidden / 2)

    monkeypatch.setitem(CELLS, "gru", CELLS["lstm"]._replace(equations=halved))
    arguments, *_ = make(2, 1, 2, 3, cell="gru")
    own, reference = (
        unroll_layer(*arguments, None, ComputeConfig(kernel=name)) for name in (kernel, "scan")
    )
    assert_same(own, reference, 1e-5)
