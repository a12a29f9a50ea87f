"""What a contender needs in a process of its own: time until it has run once, and memory."""

import contextlib
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.benchmarks.contenders import Contender
from experiments.training.environment import peak_device_memory, peak_host_memory
from experiments.training.turns import Turn
from zaremba_jax.errors import InputError


class Needs(NamedTuple):
    """What a contender needs on its own."""

    first_seconds: float  # to build it, compile it and run it once
    peak_bytes: int  # on a CPU, beyond what the process held before


def needs_of_all(
    contenders: Sequence[Contender], windows: int, console: Console, *, leave_out: bool
) -> dict[Contender, Needs]:
    """What each contender needs on its own; the first is ours, without which nothing is compared.

    With `leave_out`, peers that cannot run here are left out, with a line that says why.

    Raises:
      InputError: ours cannot run here, or a peer that is not to be left out.
    """
    needs: dict[Contender, Needs] = {}
    for contender in contenders:
        with console.status(f"{contender.name}, on its own"):
            try:
                needs[contender] = needs_of(contender.build, windows)
            except InputError as error:
                if not needs:
                    raise InputError(f"{contender.name}: {error}") from None
                if not leave_out:
                    raise InputError(f"{contender.name}: {error}; leave it out") from None
                console.print(f"{contender.name} is left out: {error}", soft_wrap=True)
    return needs


def needs_of(build: Callable[..., Turn], *arguments: Any) -> Needs:
    """Builds a contender in a new process, runs it there, and reports what that took.

    Memory is the process's resident memory on a CPU, and what the framework has taken
    of the device's on an accelerator. Errors keep the traceback of that process, except for
    those that say what a device refuses.

    Raises:
      InputError: the device refuses the contender, or its process was killed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # A `multiprocessing.Pool` would wait forever for a process that was killed.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_run_twice, build, *arguments).result()
        except BrokenProcessPool:
            raise InputError("its process was killed, perhaps for lack of memory") from None
        except jax.errors.JaxRuntimeError as error:
            message = str(error).strip().partition("\n")[0][:200]
            raise InputError(f"cannot run here ({type(error).__name__}: {message})") from None


def _run_twice(build: Callable[..., Turn], *arguments: Any) -> Needs:
    jax.devices()
    with contextlib.suppress(ImportError):
        importlib.import_module("torch")  # so that its libraries do not count
    before, start = peak_host_memory(), time.perf_counter()
    turn = build(*arguments)
    turn()
    seconds = time.perf_counter() - start
    turn()
    return Needs(seconds, _peak_on_device() or peak_host_memory() - before)


def _peak_on_device() -> int:
    """The peak of jax or of torch, whichever took more; 0 on a CPU."""
    peak = peak_device_memory()
    if jax.default_backend() == "gpu":
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError:
            return peak
        peak = max(peak, torch.cuda.max_memory_allocated())
    return peak
