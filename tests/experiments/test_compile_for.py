"""What compilers for absent accelerators produce for an epoch of the Penn Treebank.

A target whose compiler is not installed is skipped.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from invoke import ROOT, assert_refused, run_elsewhere

from experiments.compilers import hlo
from experiments.compilers.epochs import (
    compile_epoch,
    is_backward,
    memory_of,
    profile_epoch,
    roofline_seconds,
    time_loops,
    windows_per_epoch,
)
from experiments.compilers.targets import TARGETS
from zaremba_jax.config import Config, override
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError
from zaremba_jax.kernels.lstm import STEPS_PER_PASS
from zaremba_jax.presets import PRESETS, QUICK
from zaremba_jax.train import init_train_state

# Large and medium in float32 take v5e's compiler minutes, and show nothing that small does not.
COMBINATIONS = [
    *(
        ("h200", name, precision)
        for name in ("small", "medium", "large")
        for precision in ("float32", "bfloat16")
    ),
    ("v5e", "small", "float32"),
    ("v5e", "small", "bfloat16"),
    ("v5e", "medium", "bfloat16"),
    ("v5e", "large", "bfloat16"),
]
# At most, per layer and time step: forward, backward.
KERNELS = {"h200": (3.3, 3.6), "v5e": (6, 8)}


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One compiled combination, and its program."""

    target: str
    config: Config
    compiled: jax.stages.Compiled
    program: hlo.Program


@functools.cache
def compiled_epoch(target, name, precision):
    config = override(PRESETS[name], precision=precision)
    compiled = compile_epoch(config, TARGETS[target])
    return Epoch(target, config, compiled, hlo.parse(compiled.as_text()))


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def epoch(request):
    target = TARGETS[request.param[0]]
    if not target.installed:
        pytest.skip(f"no compiler for {target.name}: {target.install_command}")
    return compiled_epoch(*request.param)


def run(*lines, before=""):
    """Runs the program on each list of flags, all in one other process, after some Python."""
    return run_elsewhere("experiments.compile_for", *lines, cwd=ROOT, before=before)


@pytest.mark.compilers
def test_loops_are_the_epoch_and_each_layer_s_time_forward_and_backward(epoch):
    steps, count = epoch.config.train.unroll, windows_per_epoch(epoch.config)
    passes = steps // STEPS_PER_PASS if epoch.target == "h200" else steps
    outer, *inner = epoch.program.loops()
    assert outer.trip_count == count
    assert [loop.trip_count for loop in inner] == [passes] * 2 * epoch.config.model.layers
    assert sum(map(is_backward, time_loops(epoch.program))) == epoch.config.model.layers


@pytest.mark.compilers
def test_time_step_launches_few_kernels(epoch):
    profile = profile_epoch(epoch.compiled, TARGETS[epoch.target])
    forward, backward = KERNELS[epoch.target]
    assert profile.forward_kernels <= forward
    assert profile.backward_kernels <= backward


@pytest.mark.compilers
def test_time_step_copies_no_matrix_of_weights(epoch):
    hidden = epoch.config.model.hidden_size
    bytes_each = 2 if epoch.config.compute.precision == "bfloat16" else 4
    # In small, what an H200 keeps of the steps of a pass is larger than W_h, though its last two
    # axes are not.
    if (epoch.target, epoch.config.name) != ("h200", "small"):
        profile = profile_epoch(epoch.compiled, TARGETS[epoch.target])
        assert profile.largest_copy < 4 * hidden**2 * bytes_each
    for loop in time_loops(epoch.program):
        body = epoch.program.computations[loop.body]
        for kernel in epoch.program.kernels(loop.body):
            if not epoch.program.flops(kernel, body):
                largest = max(math.prod(result.shape[-2:]) for result in kernel.results)
                assert largest < hidden**2


@pytest.mark.compilers
def test_nothing_is_computed_in_double_precision(epoch):
    types = {result.dtype for line in epoch.program.instructions() for result in line.results}
    assert not types & {"f64", "c128"}


@pytest.mark.compilers
def test_nothing_is_added_up_in_an_order_that_changes(epoch):
    if epoch.target != "h200":
        pytest.skip("a TPU has no threads in arbitrary order")
    text = epoch.compiled.as_text()
    combiners = set(re.findall(r" scatter\(.*to_apply=%?([\w.-]+)", text))
    assert combiners
    for name in combiners:
        (region,) = re.findall(rf"^%{re.escape(name)} .*?^}}", text, re.MULTILINE | re.DOTALL)
        assert not re.search(r"f\d+\[\] add\(", region)  # integers may be added in any order


@pytest.mark.compilers
def test_epoch_never_waits_for_the_host(epoch):
    bodies = [loop.body for loop in epoch.program.loops()]
    for computation in (epoch.program.entry, *bodies):
        assert epoch.program.moves_to_or_from_host(computation) == []


@pytest.mark.compilers
def test_bfloat16_reaches_the_products_of_the_time_loops(epoch):
    if epoch.config.compute.precision == "float32":
        pytest.skip("the platform decides how float32 is multiplied")
    for loop in time_loops(epoch.program):
        body = epoch.program.computations[loop.body]
        flops = (epoch.program.flops(kernel, body) for kernel in epoch.program.kernels(loop.body))
        assert set().union(*flops) == {"bf16"}


@pytest.mark.compilers
def test_temporary_memory_is_gradients_operands_and_logits(epoch):
    state = jax.eval_shape(lambda: init_train_state(epoch.config, PTB_VOCABULARY_SIZE))
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    tokens = epoch.config.train.batch_size * epoch.config.train.unroll
    logits = tokens * PTB_VOCABULARY_SIZE * jnp.float32.dtype.itemsize
    assert memory_of(epoch.compiled).temp_size_in_bytes < 2 * params + 3 * logits


@pytest.mark.compilers
def test_roofline_is_above_the_time_of_the_products_alone(epoch):
    target = TARGETS[epoch.target]
    hidden = epoch.config.model.hidden_size
    tokens = epoch.config.train.batch_size * epoch.config.train.unroll
    weights = epoch.config.model.layers * 8 * hidden**2 + hidden * PTB_VOCABULARY_SIZE
    flops = 6 * weights * tokens * windows_per_epoch(epoch.config)
    floor = flops / target.peak_flops[epoch.config.compute.precision]
    assert floor < roofline_seconds(epoch.program, target) < 100 * floor + 10


def test_epochs_of_the_treebank_have_the_windows_that_the_corpus_cuts():
    counts = [windows_per_epoch(PRESETS[name]) for name in ("small", "medium", "large", "awd")]
    assert counts == [2323, 1327, 1327, 662]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_missing_compiler_is_named_with_what_installs_it(target):
    absent = dataclasses.replace(target, package="no_such_compiler")
    with pytest.raises(InputError, match=r"pip install \S+==\d"):
        compile_epoch(QUICK, absent)


REFUSED = {
    "--targets=v5e": ("v5e", "pip install 'jax[tpu]=="),
    "--targets=abacus": ("targets", "abacus"),
    "--targets=": ("give one or more of v5e, ",),
    "--configs=quick": ("configs", "quick"),
    "--precisions=float64": ("precisions", "float64"),
    "--devices=1,0": ("give positive numbers, separated by commas",),
    "--devices=8": ("--devices", "give --members too"),
}


def test_what_cannot_be_compiled_is_refused_in_one_line():
    hide = (
        "from experiments.compilers.targets import Target\n"
        "Target.installed = property(lambda target: False)"
    )
    outcomes = run(*([flag] for flag in REFUSED), before=hide)
    for outcome, telling in zip(outcomes, REFUSED.values(), strict=True):
        assert_refused(outcome, *telling)


def test_missing_compiler_is_refused_before_anything_is_compiled():
    before = """
from experiments.compilers import tables
from experiments.compilers.targets import TARGETS, Target
Target.installed = property(lambda target: target.name == "v5e")
object.__setattr__(TARGETS["v5e"], "devices", lambda count: [])
tables.compile_epoch = None  # is not reached
"""
    (outcome,) = run(["--targets=v5e,h200", "--configs=small"], before=before)
    assert_refused(outcome, "h200: its compiler is not installed")


def test_what_was_compiled_is_printed_though_what_follows_cannot_be():
    before = """
from experiments.compilers import epochs, targets
targets.devices_of = lambda *_: []
from zaremba_jax.errors import InputError
def profile_ensemble(config, target, members, devices, **_):
    if devices == 5: raise InputError("there is no slice of 5")
    return epochs.EnsembleProfile(
        members=1, at_once=1, device_bytes=1, collectives={}, epoch_seconds=3600.0
    )
epochs.profile_ensemble = profile_ensemble
"""
    flags = ("--targets=v5e", "--configs=small", "--precisions=bfloat16", "--members=3")
    (outcome,) = run([*flags, "--devices=4,5"], before=before)
    assert (outcome.status, outcome.err) == (2, "error: there is no slice of 5\n")
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("v5e")]
    assert [row[3:5] for row in rows] == [["4", "1"]]
    assert rows[0][-2:] == ["1549.72", "13.00"]  # 2,323 windows, 13 epochs


@pytest.mark.compilers
@pytest.mark.skipif(not TARGETS["h200"].installed, reason="no compiler for h200")
def test_program_prints_a_row_for_each_number_of_devices():
    flags = ("--targets=h200", "--configs=small", "--precisions=bfloat16", "--members=3")
    (outcome,) = run([*flags, "--devices=1,2", "--members_at_once=1"])
    assert outcome.status == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines() if line.startswith("h200")]
    assert [row[3:6] for row in rows] == [["1", "3", "1"], ["2", "2", "1"]]
    assert all(float(row[6]) < float(row[7]) == 141 and row[8] == "none" for row in rows)


@pytest.mark.compilers
@pytest.mark.skipif(not TARGETS["h200"].installed, reason="no compiler for h200")
def test_program_prints_a_row_for_each_combination():
    (outcome,) = run(["--targets=h200", "--configs=small"])
    assert outcome.status == 0
    rows = [line for line in outcome.out.splitlines() if "h200" in line]
    assert ["float32" in row for row in rows] == [True, False]
    assert ["bfloat16" in row for row in rows] == [False, True]
