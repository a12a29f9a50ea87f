"""The mesh of devices: members over its axis `member`, the streams of a batch over `data`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Shaped

from zaremba_jax.array_types import TrainState
from zaremba_jax.errors import InputError
from zaremba_jax.parallel.streams import WHOLE_BATCH, BatchShare

MEMBER, DATA = "member", "data"
EVERY_MEMBER, REPLICATED = PartitionSpec(MEMBER), PartitionSpec()


def make_mesh(devices: Sequence[Any], data_parallel: int = 1) -> Mesh:
    """A mesh of all the given devices, `data_parallel` of them sharing each member's batch.

    Raises:
      InputError: `data_parallel` does not divide the number of devices.
    """
    if data_parallel < 1 or len(devices) % data_parallel:
        raise InputError(
            f"data_parallel={data_parallel}: does not divide the {len(devices)} devices; give a"
            " divisor"
        )
    return Mesh(np.array(devices).reshape(-1, data_parallel), (MEMBER, DATA))


def state_specs(*axes: str) -> TrainState:
    """How a state is sharded: over `axes`, and its recurrent state over the streams as well."""
    lead: Any = PartitionSpec(*axes)
    streams: Any = PartitionSpec(*axes, DATA)
    return TrainState(
        params=lead,
        opt_state=lead,
        rnn_state=streams,
        step=lead,
        key=lead,
        average=lead,
        best=lead,
    )


def map_shards(function: Callable[..., Any], mesh: Mesh, inputs: Any, outputs: Any) -> Any:
    """`function` on every device, with its part of the arguments."""
    # Gradients are reduced explicitly, by `BatchShare`; nothing is left for `check_vma` to check.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def batch_share(mesh: Mesh) -> BatchShare:
    """A device's share of each member's batch."""
    return BatchShare(DATA) if mesh.shape[DATA] > 1 else WHOLE_BATCH


def fetch(x: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns the whole array, wherever its shards lie, on every host."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
