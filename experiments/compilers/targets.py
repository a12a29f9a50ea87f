"""Accelerators that need not be present: how to compile for them, and their peak performance.

Peak rates and bandwidths are the makers' figures.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

from experiments.training.environment import is_installed
from zaremba_jax.errors import InputError

# What XLA would otherwise query from the device: CUDA's device properties of an H200 SXM.
_H200_PROPERTIES = """
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One accelerator: how to compile for it, and its peak performance."""

    name: str  # as on the command line
    package: str  # the module that contains the compiler
    requirement: str  # what to pip-install for it, with jax's version left open
    devices: Callable[[int], list[Any]]  # makes those of a slice of a given size
    compiler_options: dict[str, str | bool] = dataclasses.field(default_factory=dict)  # of XLA
    peak_flops: dict[str, float]  # operations per second in matrix products, by precision
    memory_bytes: int  # of a device
    memory_bandwidth: float  # bytes per second between the chip and its memory
    on_chip_bytes: int  # of the on-chip memory that all of the chip's units share
    launch_seconds: float  # from one kernel to the next that depends on it
    scalar_kernels: bool  # whether arithmetic on a single number takes a kernel

    @property
    def install_command(self) -> str:
        """The command that installs its compiler for the running jax."""
        return f"pip install {self.requirement.format(version=jax.__version__)}"

    @property
    def installed(self) -> bool:
        """Whether its compiler is installed."""
        return is_installed(self.package)


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
        platform="cuda", topology=f"1x1x{count}", target_config=_H200_PROPERTIES
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
            compiler_options={"xla_gpu_autotune_level": "0"},  # no device to time kernels on
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


def devices_of(target: Target, count: int = 1) -> list[Any]:
    """The devices of a slice of a target, to compile for.

    Raises:
      InputError: its compiler is not installed, or there is no slice of that size.
    """
    if not target.installed:
        raise InputError(f"{target.name}: its compiler is not installed; {target.install_command}")
    return target.devices(count)
