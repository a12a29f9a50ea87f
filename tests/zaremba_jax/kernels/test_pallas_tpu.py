"""The kernels for TPUs and NVIDIA GPUs, run as ordinary operations on any machine."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from layer_examples import TOLERANCE, assert_same, make, of_layer

from zaremba_jax.array_types import RecurrentMasks
from zaremba_jax.config import QUICK, ComputeConfig, Precision, override
from zaremba_jax.kernels import pallas_gpu, pallas_tpu
from zaremba_jax.kernels.implementations import IMPLEMENTATIONS, choose, pallas_layer, scan_layer
from zaremba_jax.kernels.lstm import lstm_layer_with
from zaremba_jax.rnn import unroll_layer
from zaremba_jax.train import init_train_state, train_windows

KERNELS = {
    "tpu": pallas_tpu.time_loops(interpret=True),
    "gpu": pallas_gpu.time_loops(interpret=True),
}
kernels = pytest.mark.parametrize("loops", KERNELS.values(), ids=KERNELS)


def interpreted(loops, precision: Precision = "float32"):
    return functools.partial(lstm_layer_with, loops, precision=precision)


def assert_kernel_matches_scan(loops, precision: Precision, sizes):
    arguments, _, weights = make(*sizes)

    def readable(params, inputs, state):
        return scan_layer(params, inputs, state, None, precision)

    @jax.jit
    def run(arguments, weights):
        layers = interpreted(loops, precision), readable
        return [of_layer(layer, arguments, weights) for layer in layers]

    fast, slow = run(arguments, weights)
    assert_same(fast, slow, TOLERANCE["float32", precision])


# Batches that a GPU cuts into tiles of 16 and of 32 streams, and more than a tile of units.
@kernels
@pytest.mark.parametrize("sizes", [(2, 33, 3, 129), (2, 20, 3, 70)])
def test_kernel_matches_scan_in_values_and_gradients(loops, sizes):
    assert_kernel_matches_scan(loops, "float32", sizes)


@kernels
def test_kernel_matches_scan_of_bfloat16_operands(loops):
    assert_kernel_matches_scan(loops, "bfloat16", (3, 5, 4, 6))


@kernels
def test_vmap_over_members_within_shard_map_and_donation_equals_each_member_alone(loops):
    members = [make(2, 2, 3, 4)[::2]] * 2
    members[1] = jax.tree.map(lambda x: -2 * x, members[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    run = functools.partial(of_layer, interpreted(loops))
    mesh, spec = Mesh(np.array(jax.devices()[:1]), ("member",)), P("member")
    spread: Any = jax.shard_map(
        jax.vmap(run), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    expected = [jax.jit(run)(*member) for member in members]
    together = jax.jit(spread, donate_argnums=0)(*stacked)
    for i, alone in enumerate(expected):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-5)


@pytest.mark.slow
def test_training_run_ends_with_the_losses_of_the_scan(monkeypatch):
    config = override(QUICK, layers=1, hidden_size=6, batch_size=2, unroll=3, dropout=0.5)
    windows = np.random.default_rng(0).integers(0, 9, (6, 4, 2)).astype(np.int32)

    def losses(kernel):
        run = override(config, kernel=kernel)
        return train_windows(run, init_train_state(run, 9), jnp.asarray(windows))[1]

    readable = losses("scan")
    assert readable[-1] != readable[0]
    for loops in KERNELS.values():
        calls = []

        def layer(params, inputs, state, masks, precision, loops=loops, calls=calls):
            assert masks is None
            calls.append(loops)
            return lstm_layer_with(loops, params, inputs, state, precision)

        monkeypatch.setitem(IMPLEMENTATIONS, "pallas", layer)
        jax.clear_caches()  # they hold the other layer
        np.testing.assert_allclose(losses("pallas"), readable, rtol=1e-5)
        assert calls


def test_pallas_serves_the_lstm_without_noise_through_time_and_all_else_falls_to_xla():
    noise = RecurrentMasks(hidden=jnp.ones((1, 1, 1)))
    assert choose("pallas", "lstm", None) == "pallas"
    assert choose("pallas", "lstm", noise) == choose("pallas", "gru", None) == "xla"
    assert choose("auto", "lstm", None) == "xla"
    assert [choose(name, "gru", noise) for name in ("scan", "xla")] == ["scan", "xla"]
    arguments, masks, _ = make(2, 1, 2, 3, names=["hidden"])
    with pytest.raises(ValueError, match="without noise through time; use xla"):
        pallas_layer(*arguments, masks, "float32")
    results = (
        unroll_layer(*arguments, masks, ComputeConfig(kernel=name)) for name in ("pallas", "xla")
    )
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_machine_without_these_accelerators_runs_what_xla_does():
    arguments, _, weights = make(2, 1, 2, 3)

    def run(name):
        def layer(params, inputs, state):
            return IMPLEMENTATIONS[name](params, inputs, state, None, "float32")

        return jax.jit(functools.partial(of_layer, layer))(arguments, weights)

    jax.tree.map(np.testing.assert_array_equal, run("pallas"), run("xla"))


def test_weights_without_room_on_a_tpu_s_chip_fall_to_xla_there(monkeypatch):
    mebibyte = 2**20
    assert pallas_tpu.fits(20, 1500, itemsize=4)
    assert not pallas_tpu.fits(20, 1500, itemsize=2, memory=16 * mebibyte)
    assert pallas_tpu.fits(20, 650, itemsize=2, memory=16 * mebibyte)
    arguments, *_ = make(2, 1, 2, 3)

    def count():
        layer = functools.partial(pallas_layer, masks=None, precision="float32")
        text = jax.jit(layer).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
        return text.count("tpu_custom_call")

    assert count() == 1
    monkeypatch.setattr(pallas_tpu, "fits", lambda *sizes: False)
    assert count() == 0


def test_room_on_the_chip_is_asked_for_by_streams_units_and_bytes_of_a_weight(monkeypatch):
    asked = []
    monkeypatch.setattr(pallas_tpu, "fits", lambda *sizes: asked.append(sizes) or True)
    arguments, *_ = make(2, 1, 2, 3)
    for precision in ("float32", "bfloat16"):
        pallas_layer(*arguments, None, precision)
    assert asked == [(1, 3, 4), (1, 3, 2)]
