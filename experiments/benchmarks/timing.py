"""Fair timing: contenders take turns in one run, and are compared round by round."""

import contextlib
import importlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from zaremba_jax.errors import InputError


class Quartiles(NamedTuple):
    """A median and the spread around it."""

    lower: float
    median: float
    upper: float


class Alone(NamedTuple):
    """What a contender needs in a process of its own."""

    first_seconds: float  # to build it, compile it and run it once
    peak_bytes: int  # on a CPU, beyond what the process held before


def quartiles(values: Any) -> Quartiles:
    """The 25th, 50th and 75th percentile."""
    return Quartiles(*(float(q) for q in np.quantile(np.asarray(values), (0.25, 0.5, 0.75))))


def interleave(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every contender in every round, float64 [rounds].

    A noisy neighbour slows whoever has the turn, so only times of the same round should
    be divided by each other. Every other round runs in reverse order. Each contender
    runs once before the first round.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}


def alone(build: Callable[..., Callable[[], None]], *arguments: Any) -> Alone:
    """Builds and runs a contender in a new process, and reports what that took.

    Memory is the process's resident memory on a CPU, and what the framework has taken
    of the device's on an accelerator.

    Raises:
      InputError: the contender cannot run here, or its process was killed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # A `multiprocessing.Pool` would wait forever for a process that was killed.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, build, *arguments).result()
        except BrokenProcessPool:
            raise InputError("its process was killed, perhaps for lack of memory") from None
        except RuntimeError as error:  # how jax and torch report what a device refuses
            message = str(error).strip().partition("\n")[0][:200]
            raise InputError(f"cannot run here ({type(error).__name__}: {message})") from None


def _measure(build: Callable[..., Callable[[], None]], *arguments: Any) -> Alone:
    jax.devices()
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # so that its libraries do not count
    before, start = _peak_resident(), time.perf_counter()
    run = build(*arguments)
    run()
    seconds = time.perf_counter() - start
    run()
    return Alone(seconds, _peak_on_device() or _peak_resident() - before)


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux hands ru_maxrss down to a new process, which would start with its parent's peak.
    (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _peak_on_device() -> int:
    """The peak of jax or of torch, whichever took more; 0 on a CPU."""
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    if jax.default_backend() == "gpu":
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            return peak
        peak = max(peak, torch.cuda.max_memory_allocated())
    return peak
