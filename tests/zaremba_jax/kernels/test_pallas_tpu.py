"""The kernels for TPUs, run as ordinary operations on any machine."""

import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from layer_examples import TOLERANCE, assert_same, make, of_layer

from zaremba_jax.config import ComputeConfig, Precision, override
from zaremba_jax.kernels import pallas_tpu
from zaremba_jax.kernels.implementations import IMPLEMENTATIONS, scan_layer
from zaremba_jax.kernels.lstm import lstm_layer_with
from zaremba_jax.presets import QUICK
from zaremba_jax.rnn import unroll_layer
from zaremba_jax.train import init_train_state, train_windows

LOOPS = pallas_tpu.time_loops(interpret=True)


def interpreted(precision: Precision = "float32"):
    return functools.partial(lstm_layer_with, LOOPS, precision=precision)


def assert_kernel_matches_scan(precision: Precision, sizes):
    arguments, _, weights = make(*sizes)

    def readable(params, inputs, state):
        return scan_layer(params, inputs, state, None, precision)

    @jax.jit
    def run(arguments, weights):
        layers = interpreted(precision), readable
        return [of_layer(layer, arguments, weights) for layer in layers]

    fast, slow = run(arguments, weights)
    assert_same(fast, slow, TOLERANCE["float32", precision])


# More than a tile of streams, and of units.
@pytest.mark.parametrize("sizes", [(2, 33, 3, 129), (2, 20, 3, 70)])
def test_kernel_matches_scan_in_values_and_gradients(sizes):
    assert_kernel_matches_scan("float32", sizes)


def test_kernel_matches_scan_of_bfloat16_operands():
    assert_kernel_matches_scan("bfloat16", (3, 5, 4, 6))


def test_vmap_over_members_within_shard_map_and_donation_equals_each_member_alone():
    members = [make(2, 2, 3, 4)[::2]] * 2
    members[1] = jax.tree.map(lambda x: -2 * x, members[1])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    run = functools.partial(of_layer, interpreted())
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
        return train_windows(run, init_train_state(run, 9), jnp.asarray(windows))[1].nll

    readable = losses("scan")
    assert readable[-1] != readable[0]
    calls = []

    def layer(params, inputs, state, masks, precision):
        assert masks is None
        calls.append(precision)
        return interpreted(precision)(params, inputs, state)

    monkeypatch.setitem(IMPLEMENTATIONS, "pallas", layer)
    np.testing.assert_allclose(losses("pallas"), readable, rtol=1e-5)
    assert calls


def test_room_on_a_tpu_s_chip_is_that_of_the_weights_and_of_a_time_step():
    mebibyte = 2**20
    assert pallas_tpu.fits(20, 1500, itemsize=4)
    assert not pallas_tpu.fits(20, 1500, itemsize=2, memory=16 * mebibyte)
    assert pallas_tpu.fits(20, 650, itemsize=2, memory=16 * mebibyte)


def test_room_is_counted_in_whole_tiles_of_streams_and_units():
    needed = 4 * 1536**2 * 4 + pallas_tpu._ARRAYS_OF_A_STEP * 4 * 24 * 1536
    assert pallas_tpu.fits(21, 1500, itemsize=4, memory=int(1.12 * needed))
    assert not pallas_tpu.fits(21, 1500, itemsize=4, memory=int(1.11 * needed))


def test_room_is_that_of_the_tpu_at_hand(monkeypatch):
    small = SimpleNamespace(vmem_capacity_bytes=16 * 2**20)
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: small)
    assert pallas_tpu.fits(20, 1500, itemsize=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not pallas_tpu.fits(20, 1500, itemsize=2)


def test_program_for_a_tpu_has_both_kernels_their_room_and_operands_of_the_precision():
    """Within `shard_map` too, which checks over which axes of a mesh a result varies."""
    compute = ComputeConfig(kernel="pallas", precision="bfloat16")
    run = functools.partial(of_layer, functools.partial(unroll_layer, compute=compute))
    arguments = jax.tree.map(lambda x: x[None], make(2, 1, 2, 3)[::2])
    mesh, spec = Mesh(np.array(jax.devices()[:1]), ("member",)), P("member")
    spread: Any = jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=spec, out_specs=spec)
    lowered = jax.jit(spread).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    kernels = [line for line in lowered.splitlines() if "@tpu_custom_call" in line]
    names = [re.findall(r'kernel_name = "(\w+)"', kernel) for kernel in kernels]
    assert names == [["lstm_forward"], ["lstm_backward"]]
    tile, streams = 128, 8
    room = 4 * tile**2 * 2 + pallas_tpu._ARRAYS_OF_A_STEP * 4 * streams * tile
    for kernel, rounded in zip(kernels, ("8x128", "8x512"), strict=True):
        assert f"size\\22: {room}}}" in kernel
        assert re.search(rf"tensor<(\d+x)*128x512xbf16>.*tensor<(\d+x)*{rounded}xbf16>", kernel)
