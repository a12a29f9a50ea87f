"""What `auto` measures and chooses from candidates that are right, wrong or broken."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.training import kernel_choice as module
from experiments.training.kernel_choice import (
    Workload,
    choice_for,
    choose_kernel,
    disagreement,
    local_workload,
    measure,
    yardstick,
)
from zaremba_jax.config import override
from zaremba_jax.kernels import pallas_tpu
from zaremba_jax.kernels.implementations import IMPLEMENTATIONS, custom_vjp_layer
from zaremba_jax.kernels.lstm import lstm_layer_with
from zaremba_jax.presets import QUICK


def workload(hidden_size, **changes):
    """Workload of a tiny run on an absent TPU; each test has its own size, so that all compiles."""
    config = override(QUICK, layers=1, hidden_size=hidden_size, batch_size=2, unroll=3)
    return Workload(config=override(config, **changes), vocabulary_size=7, platform="tpu")


def interpreted(params, inputs, state, masks, precision):
    loops = pallas_tpu.time_loops(interpret=True)
    return lstm_layer_with(loops, params, inputs, state, precision)


def broken(*arguments):
    raise NotImplementedError("no such tile\nfor this chip")


@pytest.fixture
def pallas(monkeypatch):
    """A function that substitutes a layer for the Pallas kernels."""
    return lambda layer: monkeypatch.setitem(IMPLEMENTATIONS, "pallas", layer)


@pytest.mark.slow
def test_fastest_of_those_that_agree_with_the_scan_is_taken(pallas, monkeypatch):
    pallas(interpreted)

    def clock(runs, rounds):
        for run in runs.values():
            run()
        return {name: np.full(rounds, {"custom_vjp": 2.0, "pallas": 1.0}[name]) for name in runs}

    monkeypatch.setattr(module, "take_turns", clock)
    choice = measure(dataclasses.replace(workload(5), members=2))
    seconds = {"custom_vjp": 2.0 / 5, "pallas": 1.0 / 5}
    assert choice == {"kernel": "pallas", "window_seconds": seconds, "left_out": {}}


def test_candidate_that_breaks_is_named_with_the_reason_and_left_out(pallas):
    pallas(broken)
    choice = measure(workload(7), candidates=["pallas"])
    reason = "NotImplementedError: no such tile for this chip"
    assert choice == {"kernel": "custom_vjp", "window_seconds": {}, "left_out": {"pallas": reason}}


@pytest.mark.parametrize(
    ("precision", "factor"),
    [("float32", 1.001), ("bfloat16", 1.05), ("float32", float("nan"))],
)
def test_what_differs_from_the_scan_by_more_than_rounding_disagrees(pallas, precision, factor):
    def wrong(*arguments):
        outputs, state = custom_vjp_layer(*arguments)
        return outputs, dataclasses.replace(state, hidden=factor * state.hidden)

    tiny = workload(9, precision=precision)
    held_to = yardstick(tiny)
    assert disagreement(tiny, "custom_vjp", held_to) is None
    pallas(wrong)
    reason = disagreement(tiny, "pallas", held_to)
    assert reason is not None
    assert reason.startswith("differs from the scan by ")


def why_not_pallas(workload):
    return choice_for(workload, "pallas").why_not


def test_pallas_serves_what_its_kernels_can():
    assert why_not_pallas(workload(4)) is None
    assert why_not_pallas(workload(4, dropout=0.5, dropconnect=0.5, l2=0.1)) is None
    assert why_not_pallas(workload(4, cell="gru")) == "supports only the LSTM"
    for noise in ("hidden_dropout", "update_dropout", "zoneout_cell"):
        assert why_not_pallas(workload(4, **{noise: 0.5})) == "does not support noise through time"
    assert why_not_pallas(workload(9000)) == "has no room for W_h on this chip"
    local = local_workload(QUICK, 7, data_parallel=3)
    for platform in ("cpu", "gpu"):
        elsewhere = dataclasses.replace(local, platform=platform)
        assert choice_for(elsewhere, "pallas") == ("custom_vjp", "needs a TPU")
    assert local.config.train.batch_size == 7


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """A function that chooses, and returns the choice and what was printed; nothing is timed."""
    measured = {
        "kernel": "pallas",
        "window_seconds": {"pallas": 0.5},
        "left_out": {"custom_vjp": "slow"},
    }
    monkeypatch.setattr(module, "measure", lambda workload: measured)

    def choose(kernel, workload):
        file = io.StringIO()
        config = override(workload.config, kernel=kernel)
        workload = dataclasses.replace(workload, config=config)
        choice = choose_kernel(workload, tmp_path / "kernel.json", Console(file=file))
        return choice, file.getvalue()

    return choose


def test_measured_choice_is_named_and_a_run_that_has_one_keeps_it(chosen, tmp_path):
    choice, printed = chosen("auto", workload(4))
    assert choice["kernel"] == "pallas"
    assert (
        printed
        == "kernel: custom_vjp is left out: slow\nkernel: pallas; per window: pallas 500 ms\n"
    )
    kept = {"kernel": "custom_vjp", "left_out": {}}
    (tmp_path / "kernel.json").write_text(json.dumps(kept))
    assert chosen("auto", workload(4)) == (kept, "")
    for damaged in ('{"kernel": "fastest"}', "[]", "{"):
        (tmp_path / "kernel.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"kernel\.json: is damaged; remove it"):
            chosen("auto", workload(4))


def test_choice_recorded_before_custom_vjp_was_called_so_is_kept(chosen, tmp_path):
    (tmp_path / "kernel.json").write_text('{"kernel": "xla", "left_out": {}}')
    assert chosen("auto", workload(4)) == ({"kernel": "custom_vjp", "left_out": {}}, "")


def test_machine_without_accelerator_measures_nothing_and_says_what_cannot_be_had(chosen):
    local = local_workload(QUICK, 7)
    assert local.platform == "cpu" == jax.default_backend()
    reason = "needs a TPU"
    assert chosen("auto", local) == ({"kernel": "custom_vjp", "left_out": {"pallas": reason}}, "")
    choice, printed = chosen("pallas", local)
    assert choice["kernel"] == "custom_vjp"
    assert printed == f"kernel: custom_vjp, since pallas {reason}\n"
    for name in ("custom_vjp", "scan"):
        assert chosen(name, local) == ({"kernel": name}, "")
