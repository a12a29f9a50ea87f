"""Contenders of a benchmark that end in every way but the right one."""

import os
import signal
from typing import Any

import jax


def refused() -> Any:
    """One that the device's library does not support."""
    raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: no such algorithm\nof no interest")


def broken(error: type[Exception]) -> Any:
    """One with a bug."""
    raise error("planted")


def killed() -> Any:
    """One that the system kills, as if memory had run out."""
    os.kill(os.getpid(), signal.SIGKILL)
