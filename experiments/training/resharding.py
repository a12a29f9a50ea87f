"""Resuming on other devices: the saved state is read to the host and split again."""

import dataclasses
from typing import Any

import jax
import numpy as np

from zaremba_jax.array_types import TrainState


def host_buffers(state: TrainState, members: tuple[int, ...], streams: int) -> Any:
    """Host buffers for a state that was saved with other axes, its key as raw data.

    Args:
      state: the state of the present run.
      members: the leading axis of the saved state, empty for a run of one model.
      streams: the streams of its batch, padding included.
    """

    def plain(state: TrainState) -> Any:
        return dataclasses.replace(state, key=jax.random.key_data(state.key))

    shapes = jax.eval_shape(plain, state)
    skipped = len(members)

    def room(x: jax.ShapeDtypeStruct, *axes: int) -> np.ndarray:
        return np.empty((*members, *axes, *x.shape[skipped + len(axes) :]), x.dtype)

    return dataclasses.replace(
        jax.tree.map(room, shapes),
        rnn_state=jax.tree.map(lambda x: room(x, streams), shapes.rnn_state),
    )


def cut(stored: Any, like: TrainState, batch: int) -> TrainState:
    """Puts a stored state on the devices, bit for bit.

    Args:
      stored: the buffers of `host_buffers`, filled, with as many members as `like`.
      like: gives the shardings and the shapes.
      batch: streams of the batch; in both states, any surplus is padding.
    """
    axis = like.step.ndim

    def streams(x: np.ndarray, y: jax.Array) -> np.ndarray:
        kept = x[:batch] if axis == 0 else x[:, :batch]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, y.shape[axis] - batch)
        return np.pad(kept, padding)

    def put(x: np.ndarray, y: jax.Array) -> jax.Array:
        return jax.make_array_from_callback(x.shape, y.sharding, lambda part: x[part])

    rnn_state = jax.tree.map(streams, stored.rnn_state, like.rnn_state)
    state = jax.tree.map(put, dataclasses.replace(stored, rnn_state=rnn_state), like)
    # Under jit, so that keys that are spread over hosts stay spread.
    return dataclasses.replace(state, key=jax.jit(jax.random.wrap_key_data)(state.key))
