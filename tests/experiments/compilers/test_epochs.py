"""What compilers for absent accelerators produce for an ensemble over many devices.

A target whose compiler is not installed is skipped.
"""

import dataclasses
import functools

import jax
import pytest

from experiments.benchmarks.step_times import step_flops
from experiments.compilers.epochs import profile_ensemble, windows_per_epoch
from experiments.compilers.targets import TARGETS
from zaremba_jax.config import override
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.presets import PRESETS
from zaremba_jax.train import init_train_state

CONFIG = override(PRESETS["small"], precision="bfloat16")
WEIGHTS = jax.eval_shape(lambda: init_train_state(CONFIG, PTB_VOCABULARY_SIZE)).params
PARAMETERS = sum(leaf.size for leaf in jax.tree.leaves(WEIGHTS))
# Three members on four devices, one of which has padding, or on two pairs that share batches.
MEMBERS, DEVICES = 3, 4


@functools.cache
def compiled(name, data):
    return profile_ensemble(CONFIG, TARGETS[name], MEMBERS, DEVICES, data)


@pytest.fixture(params=TARGETS)
def target(request):
    chip = TARGETS[request.param]
    if not chip.installed:
        pytest.skip(f"no compiler for {chip.name}: {chip.install_command}")
    return chip


@pytest.mark.compilers
def test_members_alone_have_nothing_to_say_to_each_other(target):
    profile = compiled(target.name, data=1)
    assert (profile.members, profile.at_once, profile.collectives) == (1, 1, {})


@pytest.mark.compilers
def test_devices_that_share_a_batch_exchange_its_gradient_and_no_more(target):
    profile = compiled(target.name, data=2)
    assert (profile.members, profile.at_once) == (2, 2)
    assert profile.collectives.keys() == {"all-reduce"}
    # Of the embedding, only the rows that a window uses.
    rows = CONFIG.train.batch_size * CONFIG.train.unroll
    grad = PARAMETERS - (PTB_VOCABULARY_SIZE - rows) * CONFIG.model.hidden_size
    assert profile.collectives["all-reduce"] == pytest.approx(4 * profile.at_once * grad, rel=0.02)


@pytest.mark.compilers
def test_device_holds_its_own_members_and_what_training_them_takes(target):
    logits = CONFIG.train.batch_size * CONFIG.train.unroll * PTB_VOCABULARY_SIZE
    text = windows_per_epoch(CONFIG) * 24 * 128  # padded as on a TPU
    for data in (1, 2):
        profile = compiled(target.name, data)
        most = profile.members * (3 * PARAMETERS + 3 * logits) + text
        assert 4 * profile.members * PARAMETERS < profile.device_bytes < 4 * most


@pytest.mark.compilers
def test_epoch_takes_longer_than_its_products_alone(target):
    for data in (1, 2):
        profile = compiled(target.name, data)
        flops = profile.members * step_flops(CONFIG) / data * windows_per_epoch(CONFIG)
        floor = flops / target.peak_flops["bfloat16"]
        assert floor < profile.epoch_seconds < 100 * floor + 10


@pytest.mark.compilers
@pytest.mark.skipif(not TARGETS["h200"].installed, reason="no compiler for h200")
def test_members_that_memory_does_not_hold_at_once_are_trained_in_turn_and_fit():
    small = dataclasses.replace(TARGETS["h200"], memory_bytes=400_000_000)
    profile = profile_ensemble(CONFIG, small, members=4, devices=1)
    assert (profile.members, profile.at_once) == (4, 2)
    assert 4 * 4 * PARAMETERS < profile.device_bytes < small.memory_bytes
    alone = profile_ensemble(CONFIG, small, members=2, devices=1)  # with the text, as all four
    more = profile.device_bytes - alone.device_bytes
    assert more == pytest.approx(4 * 2 * PARAMETERS, rel=0.02)


@pytest.mark.compilers
@pytest.mark.skipif(not TARGETS["v5e"].installed, reason="no compiler for v5e")
def test_slice_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"devices=5: slices of v5e have 1, 4, 8, .*; give one"):
        profile_ensemble(CONFIG, TARGETS["v5e"], members=5, devices=5)
