"""Accelerators that need not be present: an epoch compiled for each, and a floor on its time.

The programs are compiled from shapes only. Peak rates and bandwidths are the makers' figures.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from experiments.compilers import hlo
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE, PUBLISHED
from zaremba_jax.errors import InputError
from zaremba_jax.train import init_train_state, train_windows

# What XLA would otherwise query from the device: CUDA's device properties of an H200 SXM.
H200_PROPERTIES = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 150754820096
  runtime_version: "12.9.0"
  driver_version: "12.9.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


class MissingCompilerError(InputError):
    """The compiler for a target is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One accelerator: how to compile for it, and its peak performance.

    Attributes:
      name: as on the command line.
      package: the module that contains the compiler.
      requirement: what to pip-install for it, with jax's version left open.
      devices: makes the devices of a slice of a given size.
      compiler_options: pairs of an XLA option and its value.
      peak_flops: operations per second in matrix products, by precision.
      memory_bytes: of a device.
      memory_bandwidth: bytes per second between the chip and its memory.
      on_chip_bytes: size of the on-chip memory that all of the chip's units share.
      launch_seconds: from one kernel to the next that depends on it.
      scalar_kernels: whether arithmetic on a single number takes a kernel.
    """

    name: str
    package: str
    requirement: str
    devices: Callable[[int], list[Any]]
    compiler_options: tuple[tuple[str, str], ...] = ()
    peak_flops: dict[str, float]
    memory_bytes: int
    memory_bandwidth: float
    on_chip_bytes: int
    launch_seconds: float
    scalar_kernels: bool

    @property
    def install_command(self) -> str:
        """The command that installs its compiler for the running jax."""
        return f"pip install {self.requirement.format(version=jax.__version__)}"

    @property
    def installed(self) -> bool:
        """Whether its compiler is installed."""
        return importlib.util.find_spec(self.package) is not None


# cloud.google.com/tpu/docs/v5e. A host has four chips; a single device is the first of them.
_V5E_SLICES = {1: "2x2", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16"}
_V5E_SLICES |= {256: "16x16"}


def _v5e(count: int) -> list[Any]:
    if count not in _V5E_SLICES:
        sizes = ", ".join(map(str, _V5E_SLICES))
        raise InputError(f"devices={count}: slices of v5e have {sizes} chips; give one of those")
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"v5e:{_V5E_SLICES[count]}"
    )
    return list(topology.devices)[:count]


def _h200(count: int) -> list[Any]:
    topology = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=H200_PROPERTIES
    )
    return list(topology.devices)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="v5e",
            package="libtpu",
            requirement="'jax[tpu]=={version}'",
            devices=_v5e,
            # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bfloat16. A product of float32 rounds
            # its operands to bfloat16 by default on a TPU (jax.default_matmul_precision).
            peak_flops={"bfloat16": 197e12, "float32": 197e12},
            memory_bytes=16 * 10**9,  # the same page: 16 GB
            memory_bandwidth=819e9,  # and 819 GB/s
            on_chip_bytes=128 * 2**20,  # jax-ml.github.io/scaling-book/tpus: VMEM of 128 MiB
            launch_seconds=0.0,  # one program runs from end to end, nothing is launched
            scalar_kernels=False,
        ),
        Target(
            name="h200",
            package="jax_cuda12_plugin",
            requirement="jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}",
            devices=_h200,
            compiler_options=(("xla_gpu_autotune_level", "0"),),  # no device to time kernels on
            # NVIDIA's H200 data sheet, SXM: 1,979 TFLOP/s in BFLOAT16 and 989 in TF32 with
            # sparsity, half of that without; XLA multiplies float32 as TF32 by default.
            peak_flops={"bfloat16": 989.5e12, "float32": 494.5e12},
            memory_bytes=141 * 10**9,  # the same sheet: 141 GB
            memory_bandwidth=4.8e12,  # and 4.8 TB/s
            on_chip_bytes=50 * 2**20,  # NVIDIA's H100 white paper: L2 of 50 MB
            # Fitted: a step of small in bfloat16 on an H100 (results/benchmark-small-h100.json),
            # less its roofline without launches, over its 353 kernels: 1.81 µs.
            launch_seconds=1.8e-6,
            scalar_kernels=True,
        ),
    )
}


def windows_per_epoch(config: Config) -> int:
    """How many windows the Penn Treebank's training text is cut into."""
    train_tokens, *_ = PUBLISHED["ptb"].tokens
    return (train_tokens // config.train.batch_size - 1) // config.train.unroll


def devices_of(target: Target, count: int = 1) -> list[Any]:
    """The devices of a slice of a target, to compile for.

    Raises:
      MissingCompilerError: its compiler is not installed.
      InputError: there is no slice of that size.
    """
    if not target.installed:
        raise MissingCompilerError(
            f"{target.name}: its compiler is not installed; {target.install_command}"
        )
    return target.devices(count)


def compile_epoch(config: Config, target: Target) -> jax.stages.Compiled:
    """Compiles `train.train_windows` over an epoch of the Penn Treebank for one device.

    Raises:
      MissingCompilerError: its compiler is not installed.
    """
    (device,) = devices_of(target)
    count = windows_per_epoch(config)
    state = jax.eval_shape(functools.partial(init_train_state, config, PTB_VOCABULARY_SIZE))
    windows = jax.ShapeDtypeStruct(
        (count, config.train.unroll + 1, config.train.batch_size), jnp.int32
    )
    state, windows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)),
        (state, windows),
    )
    with lowering_for(device):
        lowered = train_windows.lower(config, state, windows)
    return lowered.compile(compiler_options=dict(target.compiler_options))


def lowering_for(device: Any) -> AbstractContextManager[Any]:
    """Tells Pallas kernels, which need to know, what device their program is lowered for."""
    return jax.sharding.use_abstract_mesh(Mesh(np.array([device]), ("device",)).abstract_mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a compiler makes of an epoch.

    Attributes:
      forward_kernels: kernels per time step in a layer's loop over time, for the worst layer.
      backward_kernels: the same for its gradient.
      largest_copy: bytes of the largest array that a time step writes and that is no product.
      temporary_bytes: memory beyond that of arguments and results.
      epoch_seconds: by `roofline_seconds`.
    """

    forward_kernels: float
    backward_kernels: float
    largest_copy: int
    temporary_bytes: int
    epoch_seconds: float


def report(compiled: jax.stages.Compiled, target: Target) -> Report:
    """Reads the program that `compile_epoch` made."""
    program = hlo.parse(compiled.as_text())
    loops = time_loops(program)

    def kernels_per_step(loop: hlo.Loop) -> float:
        kernels = program.kernels(loop.body, scalars=target.scalar_kernels)
        body = program.computations[loop.body]
        # A pass may hold several time steps, each with one product.
        steps = sum(bool(program.flops(kernel, body)) for kernel in kernels)
        return len(kernels) / steps

    forward, backward = (
        max(kernels_per_step(loop) for loop in loops if is_backward(loop) == wanted)
        for wanted in (False, True)
    )
    return Report(
        forward_kernels=forward,
        backward_kernels=backward,
        largest_copy=max(largest_copy(program, loop) for loop in loops),
        temporary_bytes=memory_of(compiled).temp_size_in_bytes,
        epoch_seconds=roofline_seconds(program, target),
    )


def memory_of(compiled: jax.stages.Compiled) -> Any:
    """The compiler's `CompiledMemoryStats` of a program.

    Raises:
      InputError: the compiler does not report them.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("the compiler does not report the program's memory")
    return memory


def is_backward(loop: hlo.Loop) -> bool:
    """Whether a loop computes gradients: jax traced it as a transpose."""
    return "transpose(" in loop.source


def time_loops(program: hlo.Program) -> list[hlo.Loop]:
    """The loops over time steps: those inside the epoch's loop that have matrix products."""
    return [
        loop
        for loop in program.loops()
        if loop.outer
        and any(
            program.flops(kernel, program.computations[loop.body])
            for kernel in program.kernels(loop.body)
        )
    ]


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


def roofline_seconds(program: hlo.Program, target: Target) -> float:
    """A floor on the program's time: each kernel in turn, as fast as the target allows.

    A kernel takes its launch, and the longer of its products at the peak rate and its operands
    and results at the memory's bandwidth. A buffer that a loop hands on unchanged and that fits
    on the chip is read once per loop, and what a TPU's compiler keeps on the chip is free. A
    GPU's L2 may hold more than that, in which case this is too high.
    """
    seconds = _once(program, target, program.entry)
    for loop in program.loops():
        passes = math.prod(around.trip_count or 1 for around in (*loop.outer, loop))
        seconds += passes * _once(program, target, loop.body, loop)
    return seconds


def _once(
    program: hlo.Program, target: Target, computation: str, loop: hlo.Loop | None = None
) -> float:
    """Seconds of a computation's own kernels; for a loop's body, the mean over its passes."""
    scope = program.computations[computation]
    unchanged = program.unchanged(loop) if loop else frozenset()
    trips = (loop.trip_count or 1) if loop else 1

    def moved(kernel: hlo.Instruction) -> float:
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


def _on_chip(instruction: hlo.Instruction) -> bool:
    return all(result.space == hlo.ON_CHIP for result in instruction.results)
