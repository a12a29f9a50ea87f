"""What the processes of a run on several hosts tell each other."""

import hashlib
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.endings.errors import ProgramEndError
from zaremba_jax.errors import InputError


class LostHostError(ProgramEndError):
    """Another host of the run has ended, by a mistake in its command most often."""


def largest_over_hosts(*numbers: int) -> list[int]:
    """The maximum of each number over the hosts, so that all decide alike.

    Raises:
      LostHostError: another host does not answer.
    """
    if jax.process_count() == 1:
        return list(numbers)
    return _of_all_hosts(np.array(numbers)).max(axis=0).tolist()


def require_alike(**given: Any) -> None:
    """Refuses to go on if the hosts were given different things, which they would mix up.

    Raises:
      InputError: on every host, naming what differs.
      LostHostError: another host does not answer.
    """
    if jax.process_count() == 1:
        return
    digests = [
        np.frombuffer(hashlib.sha256(json.dumps(value).encode()).digest(), np.uint8)
        for value in given.values()
    ]
    of_hosts = _of_all_hosts(np.stack(digests))
    differs = (of_hosts != of_hosts[0]).any(axis=(0, 2))
    if names := [name for name, other in zip(given, differs, strict=True) if other]:
        raise InputError(
            f"{', '.join(names)}: differ between the hosts; give the same command and the same text"
            " on each"
        )


def _of_all_hosts(array: np.ndarray) -> np.ndarray:
    """The array of every host, stacked."""
    try:
        return multihost_utils.process_allgather(array)
    except jax.errors.JaxRuntimeError as error:
        told = str(error).partition("\n")[0]
        raise LostHostError(
            "another host of the run has ended, or cannot be reached; see what it says, and give"
            f" the same command on every host again ({told})"
        ) from error
