"""Many models in one program, stacked and spread over a mesh of devices.

Members do not communicate; the streams of a batch are spread over the mesh's axis `data` at the
cost of one reduction of the gradient per step.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt

from zaremba_jax.array_types import (
    Masks,
    ModelParams,
    RNNState,
    Tokens,
    TrainState,
    Windows,
    WindowStatistics,
)
from zaremba_jax.config import Config
from zaremba_jax.data.vocabulary import check_ids
from zaremba_jax.ensemble import MemberNLL
from zaremba_jax.evaluate import nll_by_windows
from zaremba_jax.limits import whole_number
from zaremba_jax.model import Predictor, count_params, param_shapes
from zaremba_jax.parallel.data_parallel import make_init
from zaremba_jax.parallel.mesh import (
    EVERY_MEMBER,
    MEMBER,
    REPLICATED,
    batch_share,
    fetch,
    map_shards,
    state_specs,
)
from zaremba_jax.regularizers import Rates
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import all_finite, train_windows

MemberRates = Mapping[str, jax.Array | np.ndarray]


def members_on_device(members: int, mesh: Mesh) -> int:
    """How many members stay on each device of the mesh's `member` axis, padding included."""
    return -(-members // mesh.shape[MEMBER])


def chunk_sizes(members: int, at_once: int, mesh: Mesh) -> tuple[int, ...]:
    """The number of members in each chunk; one chunk is trained after another.

    A chunk has `at_once` members per device of the mesh's `member` axis; the last one may
    have fewer, but equally many on every device. The sizes may add up to more than
    `members`; any surplus is padding.

    Raises:
      InputError: `at_once` is not a whole number of at least 1.
    """
    at_once, devices = whole_number("at_once", at_once, at_least=1), mesh.shape[MEMBER]
    full_chunks, rest = divmod(members_on_device(members, mesh), at_once)
    return (at_once * devices,) * full_chunks + (rest * devices,) * (rest > 0)


def members_that_fit(config: Config, vocabulary_size: int, resident: int, memory: int) -> int:
    """How many members a device with `memory` bytes can train at a time, at least one.

    The parameters of `resident` members stay on it; see `memory_needed`.
    """
    at_work = memory_needed(config, vocabulary_size, 0, 1)
    free = int(0.9 * memory) - memory_needed(config, vocabulary_size, resident, 0)
    return max(1, min(resident, free // at_work))


def memory_needed(config: Config, vocabulary_size: int, resident: int, at_work: int) -> int:
    """About how many bytes a device needs for members that stay on it and for those in training.

    Those that stay have their parameters, with their averages and their best. A member in training
    also needs its gradient and update, a window's logits and what is computed from them, and what
    the layers keep for the backward pass.
    """
    train, model = config.train, config.model
    parameters = count_params(param_shapes(model, vocabulary_size))
    tokens = train.batch_size * train.unroll
    scores = 3 * min(config.compute.softmax_tokens or tokens, tokens) * vocabulary_size
    activations = 20 * tokens * sum(model.layer_sizes)
    moments = 2 * (train.optimizer == "adam")
    copies = 1 + train.averages + (train.keep == "best") + moments
    staying, in_training = copies * parameters, 2 * parameters + scores + activations
    return 4 * (resident * staying + at_work * in_training)


def init_members(
    config: Config,
    vocabulary_size: int,
    seeds: Sequence[int],
    mesh: Mesh,
    params: ModelParams | None = None,
) -> TrainState:
    """The stacked states before the first window, each as for a single model with that seed.

    Args:
      config: the run; its own seed is ignored.
      vocabulary_size: number of different tokens.
      seeds: one per member; their number is a multiple of the devices on the `member` axis.
      mesh: from `make_mesh`.
      params: what every member goes on from; None: each draws its own.

    Raises:
      InputError: as for `train.init_train_state`.
    """
    return _init(np.array(seeds, np.uint32), params, config, vocabulary_size, mesh)


def init_chunks(
    config: Config,
    vocabulary_size: int,
    seeds: Sequence[int],
    at_once: int,
    mesh: Mesh,
    params: ModelParams | None = None,
) -> tuple[TrainState, ...]:
    """The states of all members, in chunks to train in turn, padded with the last member.

    Args:
      config: the run; its own seed is ignored.
      vocabulary_size: number of different tokens.
      seeds: one per member.
      at_once: members trained together on each device.
      mesh: from `make_mesh`.
      params: as for `init_members`.

    Raises:
      InputError: as for `train.init_train_state`.
    """
    return tuple(
        init_members(config, vocabulary_size, [seeds[member] for member in chunk], mesh, params)
        for chunk in chunk_members(len(seeds), chunk_sizes(len(seeds), at_once, mesh))
    )


def chunk_members(members: int, sizes: Sequence[int]) -> list[Int[np.ndarray, " indices"]]:
    """The members in each chunk of the given sizes; surplus positions repeat the last member."""
    ends = np.cumsum(sizes)
    return np.split(np.minimum(np.arange(ends[-1]), members - 1), ends[:-1])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _init(
    seeds: UInt[Array, " members"],
    params: ModelParams | None,
    config: Config,
    vocabulary_size: int,
    mesh: Mesh,
) -> TrainState:
    def start(seeds: jax.Array, params: ModelParams | None) -> TrainState:
        alone = make_init(config, vocabulary_size, mesh)
        return _vmap_members(lambda seed: alone(seed, params))(seeds)

    specs = (EVERY_MEMBER, REPLICATED)
    return map_shards(start, mesh, specs, state_specs(MEMBER))(seeds, params)


@functools.partial(
    jax.jit, static_argnames=("config", "mesh", "windows_per_epoch"), donate_argnames="states"
)
def train_members(
    config: Config,
    states: TrainState,
    windows: Windows,
    mesh: Mesh,
    rates: MemberRates | None = None,
    windows_per_epoch: int | None = None,
) -> tuple[TrainState, WindowStatistics]:
    """Trains every member on the next windows, as `train.train_windows` trains one.

    A member gets the same masks as when trained on its own, and the same numbers up to
    rounding; a device with only one member runs the very same program.

    Args:
      config: the run; static.
      states: from `init_members`; their buffers are donated to the result.
      windows: as for `train.train_windows`.
      mesh: from `make_mesh`; static.
      rates: in place of the configuration's, `[members]` each, as for `train.train_step`.
      windows_per_epoch: as for `train.train_windows`; static.

    Returns:
      The states after these windows, and the statistics of each, [members, windows].
    """

    def train(windows: Windows, states: TrainState, rates: MemberRates | None) -> Any:
        def alone(state: TrainState, rates: Rates | None) -> Any:
            return train_windows(
                config, state, windows, rates, batch_share(mesh), windows_per_epoch
            )

        return _vmap_members(alone)(states, rates)

    specs = state_specs(MEMBER)
    return map_shards(train, mesh, (REPLICATED, specs, EVERY_MEMBER), (specs, EVERY_MEMBER))(
        windows, states, rates
    )


def members_nll(predictors: Predictor, ids: np.ndarray, streams: int, mesh: Mesh) -> MemberNLL:
    """`evaluate.text_nll` of all members together.

    Only one window's logits exist at a time; what is kept is one number per token and
    member, from which `ensemble.mixture_nll` computes any mixture.

    Args:
      predictors: the members' parameters, stacked. Their masks are shared: members that differ
        in their zoneout have to be evaluated one by one.
      ids: as for `evaluate.text_nll`.
      streams: likewise.
      mesh: from `make_mesh`.

    Raises:
      InputError: the text has no token to predict, or one that is not in the vocabulary, or
        `streams` is below 1.
    """
    check_ids(ids, predictors.params.embedding.shape[1])

    def read(inputs: Tokens, targets: Tokens, state: RNNState) -> Any:
        nll, state = _window_nll(predictors, inputs, targets, state, mesh)
        return fetch(nll), state

    start = functools.partial(_zero_states, predictors.params, mesh=mesh)
    return nll_by_windows(read, ids, streams, start)


@functools.partial(jax.jit, static_argnames=("streams", "mesh"))
def _zero_states(params: ModelParams, streams: int, mesh: Mesh) -> RNNState:
    def start(params: ModelParams) -> RNNState:
        return zero_state(params.layers, streams)

    return map_shards(_vmap_members(start), mesh, (EVERY_MEMBER,), EVERY_MEMBER)(params)


@functools.partial(jax.jit, static_argnames="mesh")
def _window_nll(
    predictors: Predictor, inputs: Tokens, targets: Tokens, states: RNNState, mesh: Mesh
) -> tuple[Float[Array, "members time batch"], RNNState]:
    def read(params: Any, masks: Masks | None, inputs: Tokens, targets: Tokens, states: Any):
        def alone(params: ModelParams, state: RNNState):
            predictor = Predictor(params, masks, predictors.compute)
            return predictor.token_nll(inputs, targets, state)

        return _vmap_members(alone)(params, states)

    specs = (EVERY_MEMBER, REPLICATED, REPLICATED, REPLICATED, EVERY_MEMBER)
    return map_shards(read, mesh, specs, EVERY_MEMBER)(
        predictors.params, predictors.masks, inputs, targets, states
    )


@jax.jit
def finite_members(params: ModelParams) -> Bool[Array, " members"]:
    """Whether every number of a member is finite."""
    return jax.vmap(all_finite)(params)


def _vmap_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """`vmap`; for one member, the function itself, which compiles to a single model's program."""

    def call(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments)[0]) > 1:
            return jax.vmap(function)(*arguments)
        alone = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*alone))

    return call
