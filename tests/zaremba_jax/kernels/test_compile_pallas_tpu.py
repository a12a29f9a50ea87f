"""What compilers for absent accelerators produce for the Pallas kernels.

Only the loops over time, at the sizes that matter, since the rest of a training step is that of
`xla`; and a whole epoch of `small`. A target whose compiler is not installed is skipped.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.compilers import hlo
from experiments.compilers.epochs import compile_epoch, lowering_for, windows_per_epoch
from experiments.compilers.targets import H200_PROPERTIES, TARGETS
from zaremba_jax.array_types import LSTMState
from zaremba_jax.config import LARGE, MEDIUM, SMALL, override
from zaremba_jax.kernels import pallas_gpu, pallas_tpu
from zaremba_jax.kernels.lstm import TILE, UNROLL

pytestmark = [
    pytest.mark.compilers,
    # From jax 0.12 on.
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]

# Turns the CUDA device properties and the name of an H200 into those of an A100.
A100 = (
    ("{ major: 9 }", "{ major: 8 }"),
    ("core_count: 132", "core_count: 108"),
    ("clock_rate_ghz: 1.98", "clock_rate_ghz: 1.41"),
    ("block_optin: 232448", "block_optin: 166912"),
    ("per_core: 233472", "per_core: 167936"),
    ("l2_cache_size: 52428800", "l2_cache_size: 41943040"),
    ("memory_bandwidth: 4800000000000", "memory_bandwidth: 2039000000000"),
    ("device_memory_size: 150754820096", "device_memory_size: 85899345920"),
    ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"),
)


def devices_of(chip):
    family = TARGETS["v5e" if chip.startswith("v") else "h200"]
    if not family.installed:
        pytest.skip(f"no compiler for {chip}: {family.install_command}")
    if chip == "h200":
        return family.devices(1), family
    if chip == "a100":
        properties = H200_PROPERTIES
        for old, new in A100:
            assert old in properties
            properties = properties.replace(old, new)
        topology = topologies.get_topology_desc(
            platform="cuda", topology="1x1x1", target_config=properties
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    return topology.devices, family


def compile_loops(chip, config, precision, members):
    """Both loops over a window's time steps, one after the other."""
    devices, family = devices_of(chip)
    sharding = SingleDeviceSharding(devices[0])
    time, batch = config.train.unroll, config.train.batch_size
    hidden = config.model.hidden_size

    def array(*shape, dtype=jnp.float32) -> Any:
        shape = shape if members == 1 else (members, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    loops = (pallas_tpu if chip.startswith("v") else pallas_gpu).time_loops()

    def forward_backward(projected, weights, state, d_outputs):
        outputs, cell, saved = loops.forward(projected, weights, state)
        return outputs, loops.backward(weights, state, saved, d_outputs, cell)

    arguments = (
        array(time, batch, 4 * hidden),
        array(hidden, 4 * hidden, dtype=jnp.dtype(precision)),
        LSTMState(array(batch, hidden), array(batch, hidden)),
        array(time, batch, hidden),
    )
    run = forward_backward if members == 1 else jax.vmap(forward_backward)
    with lowering_for(devices[0]):
        lowered = jax.jit(run).lower(*arguments)
    return hlo.parse(lowered.compile(dict(family.compiler_options)).as_text())


def kernels_of(program, computation):
    return [
        line for line in program.kernels(computation) if "pallas_call" in line.attribute("op_name")
    ]


SIZES = [(MEDIUM, 1), (LARGE, 1), (LARGE, 8)]
sizes = pytest.mark.parametrize(
    ("config", "members"), SIZES, ids=[f"{config.name}-{members}" for config, members in SIZES]
)


@sizes
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_tpu_reads_the_weights_once_a_window(chip, config, members):
    program = compile_loops(chip, config, "bfloat16", members)
    assert list(program.loops()) == []  # the window's time steps are inside the kernels
    kernels = kernels_of(program, program.entry)
    assert len(kernels) == 2
    units = config.model.hidden_size + -config.model.hidden_size % TILE
    scope = program.computations[program.entry]
    for kernel in kernels:
        read = [scope[name].results[0] for name in kernel.operands]
        (weights,) = (x for x in read if x.shape[-2:] == (units, 4 * units))
        assert weights.dtype == "bf16"


def test_tpu_has_room_for_large_in_float32():
    compile_loops("v5e", LARGE, "float32", 1)


@sizes
@pytest.mark.parametrize("chip", ["h200", "a100"])
def test_nvidia_takes_two_kernels_a_time_step(chip, config, members):
    program = compile_loops(chip, config, "bfloat16", members)
    loops = list(program.loops())
    assert [loop.trip_count for loop in loops] == [config.train.unroll // UNROLL] * 2
    for loop in loops:
        launched = program.kernels(loop.body)
        assert len(launched) <= 2 * UNROLL  # the kernel, and the counter of time steps
        assert len(kernels_of(program, loop.body)) == UNROLL


@pytest.mark.parametrize("chip", ["v5e", "h200"])
def test_epoch_runs_its_time_steps_by_the_kernels_and_by_nothing_else(chip):
    _, family = devices_of(chip)
    config = override(SMALL, kernel="pallas", precision="bfloat16")
    program = hlo.parse(compile_epoch(config, family).as_text())
    epoch, *over_time = program.loops()
    assert epoch.trip_count == windows_per_epoch(config)
    both_ways = 2 * config.model.layers  # forward and backward
    assert len(over_time) == (0 if chip == "v5e" else both_ways)
    ran = len(kernels_of(program, epoch.body))  # steps left over from whole passes too
    ran += sum(len(kernels_of(program, loop.body)) * (loop.trip_count or 1) for loop in over_time)
    assert ran == both_ways * (1 if chip == "v5e" else config.train.unroll)


def test_nvidia_s_tiles_of_float32_fit_into_the_shared_memory_of_an_a100():
    compile_loops("a100", LARGE, "float32", 1)


def test_tiles_that_do_not_fit_are_refused_by_the_compiler(monkeypatch):
    monkeypatch.setattr(pallas_gpu, "_FORWARD_BYTES", 1024)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"[Ss]hared memory"):
        compile_loops("a100", LARGE, "float32", 1)
