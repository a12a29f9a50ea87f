"""An epoch of the Penn Treebank compiled for accelerators that need not be present.

The programs are compiled from shapes only.
"""

import dataclasses
import functools
import math
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.compilers import hlo
from experiments.compilers.hlo_text import ON_CHIP, Instruction
from experiments.compilers.targets import Target, devices_of
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE, PUBLISHED
from zaremba_jax.data.windows import TextWindows
from zaremba_jax.parallel.members import (
    chunk_sizes,
    init_members,
    members_on_device,
    members_that_fit,
    train_members,
)
from zaremba_jax.parallel.mesh import MEMBER, make_mesh, state_specs
from zaremba_jax.train import init_train_state, train_windows


def windows_per_epoch(config: Config) -> int:
    """How many windows the Penn Treebank's training text is cut into."""
    count, *_ = PUBLISHED["ptb"].tokens
    ids, train = np.broadcast_to(np.int32(0), count), config.train
    seed = config.seed if train.random_offset else None
    return len(TextWindows(ids, train.batch_size, train.unroll, seed))


def compile_epoch(config: Config, target: Target) -> jax.stages.Compiled:
    """Compiles `train.train_windows` over an epoch for one device."""
    (device,) = devices_of(target)
    state = jax.eval_shape(functools.partial(init_train_state, config, PTB_VOCABULARY_SIZE))
    state, windows = _placed(SingleDeviceSharding(device), (state, _windows(config)))
    with lowering_for(device):
        lowered = train_windows.lower(config, state, windows)
    return lowered.compile(compiler_options=target.compiler_options)


def lowering_for(device: Any) -> AbstractContextManager[Any]:
    """Tells Pallas kernels, which need to know, what device their program is lowered for."""
    return jax.sharding.use_abstract_mesh(Mesh(np.array([device]), ("device",)).abstract_mesh)


def compile_members(
    config: Config, target: Target, members: int, mesh: Mesh
) -> jax.stages.Compiled:
    """Compiles `members.train_members` over an epoch for a mesh of a target's devices."""
    start = functools.partial(init_members, config, PTB_VOCABULARY_SIZE, range(members), mesh)
    specs = jax.tree.map(functools.partial(NamedSharding, mesh), state_specs(MEMBER))
    states = jax.tree.map(_placed, specs, jax.eval_shape(start))
    windows = _placed(NamedSharding(mesh, PartitionSpec()), _windows(config))
    lowered = train_members.lower(config, states, windows, mesh)
    return lowered.compile(compiler_options=target.compiler_options)


def _windows(config: Config) -> jax.ShapeDtypeStruct:
    shape = (windows_per_epoch(config), config.train.unroll + 1, config.train.batch_size)
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(sharding: Sharding, arrays: Any) -> Any:
    """The shapes of arrays that lie as the sharding says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)


def memory_of(compiled: jax.stages.Compiled) -> Any:
    """The compiler's `CompiledMemoryStats`; `ValueError` if it does not report them."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("the compiler does not report the program's memory")
    return memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochProfile:
    """What a compiler makes of an epoch; kernels are per time step, of the worst layer."""

    forward_kernels: float  # of a layer's loop over time
    backward_kernels: float  # of its gradient
    largest_copy: int  # bytes of the largest array that a time step writes and that is no product
    temporary_bytes: int  # beyond arguments and results
    epoch_seconds: float  # by `roofline_seconds`


def profile_epoch(compiled: jax.stages.Compiled, target: Target) -> EpochProfile:
    """Reads the program that `compile_epoch` made."""
    program = hlo.parse(compiled.as_text())
    loops = time_loops(program)

    def kernels_per_step(loop: hlo.Loop) -> float:
        kernels = program.kernels(loop.body, scalars=target.scalar_kernels)
        return len(kernels) / len(products(program, loop))  # a pass may hold several time steps

    forward, backward = (
        max(kernels_per_step(loop) for loop in loops if is_backward(loop) == wanted)
        for wanted in (False, True)
    )
    return EpochProfile(
        forward_kernels=forward,
        backward_kernels=backward,
        largest_copy=max(largest_copy(program, loop) for loop in loops),
        temporary_bytes=memory_of(compiled).temp_size_in_bytes,
        epoch_seconds=roofline_seconds(program, target),
    )


def is_backward(loop: hlo.Loop) -> bool:
    """Whether a loop computes gradients: jax traced it as a transpose."""
    return "transpose(" in loop.source


def time_loops(program: hlo.Program) -> list[hlo.Loop]:
    """The loops over time steps: those inside the epoch's loop that have matrix products."""
    return [loop for loop in program.loops() if loop.outer and products(program, loop)]


def products(program: hlo.Program, loop: hlo.Loop) -> list[Instruction]:
    """The kernels of a pass of a loop that have matrix products: over time, one for each step."""
    body = program.computations[loop.body]
    return [kernel for kernel in program.kernels(loop.body) if program.flops(kernel, body)]


def largest_copy(program: hlo.Program, loop: hlo.Loop) -> int:
    """Bytes of the largest array that one pass of a loop writes and that is no product.

    If a weight matrix is copied, padded, transposed or converted in the loop, this is at least
    its size.
    """
    body = program.computations[loop.body]
    return max(
        size
        for kernel in program.kernels(loop.body)
        if not program.flops(kernel, body)
        for size in program.writes(kernel, body)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleProfile:
    """What a compiler makes of an ensemble's epoch, per device; all devices do the same."""

    members: int  # that a device holds, padding included
    at_once: int  # how many of those it trains together
    device_bytes: int  # of its members' states, of the text, and of what else training needs
    collectives: dict[str, int]  # bytes exchanged in a step, by kind of communication
    epoch_seconds: float  # by `roofline_seconds`, which leaves out communication


def profile_ensemble(
    config: Config,
    target: Target,
    members: int,
    devices: int,
    data: int = 1,
    at_once: int | None = None,
) -> EnsembleProfile:
    """Compiles the training of an ensemble for a slice of a target, and reads the result.

    `data` of the devices share the batch of a member; each trains `at_once` of its members
    together, by default what its memory allows.
    """
    mesh = make_mesh(devices_of(target, devices), data)
    resident = members_on_device(members, mesh)
    fitting = members_that_fit(config, PTB_VOCABULARY_SIZE, resident, target.memory_bytes)
    at_once = min(at_once or fitting, resident)
    chunks = chunk_sizes(members, at_once, mesh)
    compiled = {size: compile_members(config, target, size, mesh) for size in set(chunks)}
    programs = {size: hlo.parse(executable.as_text()) for size, executable in compiled.items()}
    memory = {size: memory_of(executable) for size, executable in compiled.items()}
    # A chunk's states are what its results replace; the text beside them serves all chunks.
    states = sum(memory[size].alias_size_in_bytes for size in chunks)
    beside = max(
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - 2 * m.alias_size_in_bytes
        for m in memory.values()
    )
    return EnsembleProfile(
        members=resident,
        at_once=at_once,
        device_bytes=states + beside,
        collectives=programs[max(chunks)].collectives(),
        epoch_seconds=sum(roofline_seconds(programs[size], target) for size in chunks),
    )


def roofline_seconds(program: hlo.Program, target: Target) -> float:
    """The least time of a program: each kernel in turn, as fast as the target allows.

    A kernel takes its launch, and the longer of its products at the peak rate and its operands
    and results at the memory's bandwidth. A buffer that a loop hands on unchanged and that fits
    on the chip is read once per loop, and what a TPU's compiler keeps on the chip is free. A
    GPU's L2 may hold more than that, in which case this is too high.
    """
    seconds = _seconds_of_a_pass(program, target, program.entry)
    for loop in program.loops():
        passes = math.prod(around.trip_count or 1 for around in (*loop.outer, loop))
        seconds += passes * _seconds_of_a_pass(program, target, loop.body, loop)
    return seconds


def _seconds_of_a_pass(
    program: hlo.Program, target: Target, computation: str, loop: hlo.Loop | None = None
) -> float:
    """Seconds of a computation's own kernels; for a loop's body, the mean over its passes."""
    scope = program.computations[computation]
    unchanged = program.unchanged(loop) if loop else frozenset()
    trips = (loop.trip_count or 1) if loop else 1

    def moved(kernel: Instruction) -> float:
        total = sum(program.writes(kernel, scope)) * (not _on_chip(kernel))
        for name, size in program.reads(kernel, scope).items():
            nbytes = scope[name].nbytes
            if _on_chip(scope[name]):
                continue
            stays = name in unchanged and nbytes <= target.on_chip_bytes
            total += min(size, nbytes / trips) if stays else size
        return total

    seconds = 0.0
    for kernel in program.kernels(computation, scalars=target.scalar_kernels):
        computing = sum(
            flops / target.peak_flops["bfloat16" if dtype == "bf16" else "float32"]
            for dtype, flops in program.flops(kernel, scope).items()
        )
        seconds += target.launch_seconds
        seconds += max(computing, moved(kernel) / target.memory_bandwidth)
    return seconds


def _on_chip(instruction: Instruction) -> bool:
    return all(result.space == ON_CHIP for result in instruction.results)
