"""One model, with the streams of its batch spread over a mesh of devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from zaremba_jax.array_types import ModelParams, TrainState, Windows, WindowStatistics
from zaremba_jax.config import Config
from zaremba_jax.parallel.mesh import DATA, REPLICATED, batch_share, map_shards, state_specs
from zaremba_jax.parallel.streams import streams_of_device
from zaremba_jax.regularizers import Rates
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import init_train_state, train_windows


def make_init(
    config: Config, vocabulary_size: int, mesh: Mesh
) -> Callable[[jax.Array, ModelParams | None], TrainState]:
    """`init_train_state` as a function of a seed and parameters, with the streams of one device."""
    streams = streams_of_device(config.train.batch_size, mesh.shape[DATA])

    def start(seed: jax.Array, params: ModelParams | None) -> TrainState:
        state = init_train_state(config, vocabulary_size, seed, params)
        return dataclasses.replace(state, rnn_state=zero_state(state.params.layers, streams))

    return start


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init_data_parallel(
    config: Config, vocabulary_size: int, mesh: Mesh, params: ModelParams | None = None
) -> TrainState:
    """`train.init_train_state`, for `train_data_parallel`."""
    start = make_init(config, vocabulary_size, mesh)
    seed = jnp.uint32(config.seed)
    return map_shards(start, mesh, (REPLICATED, REPLICATED), state_specs())(seed, params)


@functools.partial(
    jax.jit, static_argnames=("config", "mesh", "windows_per_epoch"), donate_argnames="state"
)
def train_data_parallel(
    config: Config,
    state: TrainState,
    windows: Windows,
    mesh: Mesh,
    rates: Rates | None = None,
    windows_per_epoch: int | None = None,
) -> tuple[TrainState, WindowStatistics]:
    """`train.train_windows` for one model, with the streams of its batch spread over the mesh."""

    def train(windows: Windows, state: TrainState, rates: Rates | None) -> Any:
        share = batch_share(mesh)
        return train_windows(config, state, windows, rates, share, windows_per_epoch)

    specs = state_specs()
    return map_shards(train, mesh, (REPLICATED, specs, REPLICATED), (specs, REPLICATED))(
        windows, state, rates
    )
