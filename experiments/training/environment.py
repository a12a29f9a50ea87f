"""What measured figures depend on besides the configuration: versions, the device, its memory."""

import importlib.util
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment(devices: int = 1) -> dict[str, Any]:
    """What the figures of a record depend on besides its configuration, made on so many devices."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    return {"versions": versions, "device": device_name(devices)}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as wandb leaves, is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        return False
    return spec is not None and spec.origin is not None


def device_name(count: int = 1) -> str:
    """The accelerators, or the CPU with its number of usable cores."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = f"CPU, {cores()} cores" if cores() > 1 else "CPU, 1 core"
    return f"{count} × {name}" if count > 1 else name


def device_memory() -> int:
    """Bytes that the first device of this process has; of a CPU, the host's."""
    of_device = jax.local_devices()[0].memory_stats() or {}
    return of_device.get("bytes_limit", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def peak_device_memory() -> int:
    """Bytes, the most that jax has taken of a device of this process; 0 on a CPU."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(of_device.get("peak_bytes_in_use", 0) for of_device in statistics)


def peak_host_memory() -> int:
    """Bytes, the most that this process has had in the host's memory."""
    status = Path("/proc/self/status")
    # Linux hands ru_maxrss down to a new process, which would start with its parent's peak.
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):  # which some sandboxes do not tell
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def cores() -> int:
    """The number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
