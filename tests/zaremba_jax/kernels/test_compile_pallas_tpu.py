"""What the compilers for absent TPUs produce for the Pallas kernels.

Only the loops over time, at the sizes that matter, since the rest of a training step is that of
`custom_vjp`; and a whole epoch of `small`. Skipped if the compiler is not installed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.compilers import hlo
from experiments.compilers.epochs import compile_epoch, lowering_for, windows_per_epoch
from experiments.compilers.targets import TARGETS
from zaremba_jax.array_types import LSTMState
from zaremba_jax.config import override
from zaremba_jax.kernels import pallas_tpu
from zaremba_jax.kernels.tiles import UNITS_PER_TILE
from zaremba_jax.presets import LARGE, MEDIUM, SMALL

FAMILY = TARGETS["v5e"]
pytestmark = [
    pytest.mark.compilers,
    pytest.mark.skipif(not FAMILY.installed, reason=f"needs {FAMILY.install_command}"),
]


def compile_loops(chip, config, precision, members):
    """Both loops over a window's time steps, one after the other."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
    device = topology.devices[0]
    sharding = SingleDeviceSharding(device)
    time, batch = config.train.unroll, config.train.batch_size
    hidden = config.model.hidden_size

    def array(*shape, dtype=jnp.float32) -> Any:
        shape = shape if members == 1 else (members, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    loops = pallas_tpu.time_loops()

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
    with lowering_for(device):
        lowered = jax.jit(run).lower(*arguments)
    return hlo.parse(lowered.compile(FAMILY.compiler_options).as_text())


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
    units = config.model.hidden_size + -config.model.hidden_size % UNITS_PER_TILE
    scope = program.computations[program.entry]
    for kernel in kernels:
        read = [scope[name].results[0] for name in kernel.operands]
        (weights,) = (x for x in read if x.shape[-2:] == (units, 4 * units))
        assert weights.dtype == "bf16"


def test_tpu_has_room_for_large_in_float32():
    compile_loops("v5e", LARGE, "float32", 1)


def test_epoch_runs_its_time_steps_by_the_kernels_and_by_nothing_else():
    config = override(SMALL, kernel="pallas", precision="bfloat16")
    program = hlo.parse(compile_epoch(config, FAMILY).as_text())
    (epoch,) = program.loops()
    assert epoch.trip_count == windows_per_epoch(config)
    assert len(kernels_of(program, epoch.body)) == 2 * config.model.layers  # forward and backward
