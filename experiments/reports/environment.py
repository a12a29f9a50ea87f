"""What measured figures depend on besides the configuration: versions and the device."""

import os
import platform
from importlib.metadata import version
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, Any]:
    """What the figures of a record depend on besides its configuration."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    return {"versions": versions, "device": device_name()}


def device_name() -> str:
    """The accelerator, or the CPU with its number of usable cores."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"CPU, {cores()} cores" if cores() > 1 else "CPU, 1 core"


def device_memory() -> int:
    """Bytes that the first device of this process has; of a CPU, the host's."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    return of_device.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
