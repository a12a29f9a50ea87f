"""Many models in one program, stacked and spread over a mesh of devices; their mixtures.

Zaremba et al. (2014), section 4.1: the best results average the probabilities of models
that differ only in their seed. The mesh has two axes: members are spread over `member`
and do not communicate; the streams of a batch are spread over `data`, at the cost of one
reduction of the gradient per step.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from zaremba_jax.array_types import Masks, ModelParams, RNNState, Tokens, TrainState, Windows
from zaremba_jax.config import ComputeConfig, Config
from zaremba_jax.data.vocabulary import check_ids
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import nll_by_windows, perplexity
from zaremba_jax.model import count_params, token_nll
from zaremba_jax.regularizers import Rates
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import all_finite, init_train_state, padded_batch_size, train_windows

MEMBER, DATA = "member", "data"
_EVERY_MEMBER, _REPLICATED = PartitionSpec(MEMBER), PartitionSpec()
_DRAWS = 100  # of subsets, if there are more

MemberRates = Mapping[str, jax.Array | np.ndarray]
MemberNLL = Float[np.ndarray, "members predictions"]


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


def chunk_sizes(members: int, at_once: int, mesh: Mesh) -> tuple[int, ...]:
    """The number of members in each chunk; one chunk is trained after another.

    A chunk has `at_once` members per device of the mesh's `member` axis; the last one may
    have fewer, but equally many on every device. The sizes may add up to more than
    `members`; any surplus is padding.
    """
    devices = mesh.shape[MEMBER]
    full_chunks, rest = divmod(-(-members // devices), at_once)
    return (at_once * devices,) * full_chunks + (rest * devices,) * (rest > 0)


def members_that_fit(config: Config, vocabulary_size: int, resident: int, memory: int) -> int:
    """How many members a device with `memory` bytes can train at a time, at least one.

    The parameters of `resident` members stay on it. A member in training also needs its
    gradient and update, a window's logits and what is computed from them, and what the
    layers keep for the backward pass.
    """
    train, model = config.train, config.model
    state = jax.eval_shape(functools.partial(init_train_state, config, vocabulary_size))
    parameters = count_params(state.params)
    tokens = train.batch_size * train.unroll
    scores = 3 * min(config.compute.softmax_tokens or tokens, tokens) * vocabulary_size
    activations = 20 * model.layers * tokens * model.hidden_size
    at_work = 4 * (2 * parameters + scores + activations)
    free = int(0.9 * memory) - 4 * parameters * resident
    return max(1, min(resident, free // at_work))


def init_members(
    config: Config, vocabulary_size: int, seeds: Sequence[int], mesh: Mesh
) -> TrainState:
    """The stacked states before the first window, each as for a single model with that seed.

    Args:
      config: the run; its own seed is ignored.
      vocabulary_size: number of different tokens.
      seeds: one per member; their number is a multiple of the devices on the `member` axis.
      mesh: from `make_mesh`.
    """
    return _init(np.array(seeds, np.uint32), config, vocabulary_size, mesh)


def init_chunks(
    config: Config,
    vocabulary_size: int,
    seeds: Sequence[int],
    at_once: int,
    mesh: Mesh,
) -> tuple[TrainState, ...]:
    """The states of all members, in chunks to train in turn, padded with the last member.

    Args:
      config: the run; its own seed is ignored.
      vocabulary_size: number of different tokens.
      seeds: one per member.
      at_once: members trained together on each device.
      mesh: from `make_mesh`.
    """
    return tuple(
        init_members(config, vocabulary_size, [seeds[member] for member in chunk], mesh)
        for chunk in chunk_members(len(seeds), chunk_sizes(len(seeds), at_once, mesh))
    )


def chunk_members(members: int, sizes: Sequence[int]) -> list[Int[np.ndarray, " indices"]]:
    """The members in each chunk of the given sizes; surplus positions repeat the last member."""
    ends = np.cumsum(sizes)
    return np.split(np.minimum(np.arange(ends[-1]), members - 1), ends[:-1])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init(
    seeds: UInt[Array, " members"],
    config: Config,
    vocabulary_size: int,
    mesh: Mesh,
) -> TrainState:
    start = _make_init(config, vocabulary_size, mesh)
    return _shard_map(_vmap_members(start), mesh, (_EVERY_MEMBER,), state_specs(MEMBER))(seeds)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init_data_parallel(config: Config, vocabulary_size: int, mesh: Mesh) -> TrainState:
    """The initial state of one model, that of `config.seed`, for `train_data_parallel`."""
    start = _make_init(config, vocabulary_size, mesh)
    seed = jnp.uint32(config.seed)
    return _shard_map(start, mesh, (_REPLICATED,), state_specs())(seed)


@functools.partial(
    jax.jit,
    static_argnames=("config", "mesh", "windows_per_epoch", "record_grad_norm"),
    donate_argnames="states",
)
def train_members(
    config: Config,
    states: TrainState,
    windows: Windows,
    mesh: Mesh,
    rates: MemberRates | None = None,
    windows_per_epoch: int | None = None,
    record_grad_norm: bool = False,
) -> tuple[TrainState, Float[Array, "members windows *statistics"]]:
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
      record_grad_norm: as for `train.train_windows`; static.

    Returns:
      The states after these windows, and what `train.train_step` returns for each window.
    """

    def train(windows: Windows, states: TrainState, rates: MemberRates | None) -> Any:
        alone = _train_member(config, windows, mesh, windows_per_epoch, record_grad_norm)
        return _vmap_members(alone)(states, rates)

    specs = state_specs(MEMBER)
    return _shard_map(train, mesh, (_REPLICATED, specs, _EVERY_MEMBER), (specs, _EVERY_MEMBER))(
        windows, states, rates
    )


@functools.partial(
    jax.jit,
    static_argnames=("config", "mesh", "windows_per_epoch", "record_grad_norm"),
    donate_argnames="state",
)
def train_data_parallel(
    config: Config,
    state: TrainState,
    windows: Windows,
    mesh: Mesh,
    windows_per_epoch: int | None = None,
    record_grad_norm: bool = False,
) -> tuple[TrainState, Float[Array, "windows *statistics"]]:
    """`train.train_windows` for one model, with the streams of its batch spread over the mesh."""

    def train(windows: Windows, state: TrainState) -> Any:
        return _train_member(config, windows, mesh, windows_per_epoch, record_grad_norm)(state)

    specs = state_specs()
    return _shard_map(train, mesh, (_REPLICATED, specs), (specs, _REPLICATED))(windows, state)


def members_nll(
    params: ModelParams,
    ids: np.ndarray,
    streams: int,
    compute: ComputeConfig,
    masks: Masks | None,
    mesh: Mesh,
) -> MemberNLL:
    """`evaluate.text_nll` of all members together; arguments as there, with `params` stacked.

    `masks` are shared: members that differ in their zoneout have to be evaluated one by one.
    Only one window's logits exist at a time; what is kept is one number per token and
    member, from which `mixture_nll` computes any mixture.
    """
    check_ids(ids, params.embedding.shape[1])

    def read(inputs: Tokens, targets: Tokens, state: RNNState) -> Any:
        nll, state = _window_nll(params, inputs, targets, state, masks, compute, mesh)
        return fetch(nll), state

    return nll_by_windows(read, ids, streams, _zero_states(params, streams, mesh))


@functools.partial(jax.jit, static_argnames=("streams", "mesh"))
def _zero_states(params: ModelParams, streams: int, mesh: Mesh) -> RNNState:
    def start(params: ModelParams) -> RNNState:
        return zero_state(params.layers, streams)

    return _shard_map(_vmap_members(start), mesh, (_EVERY_MEMBER,), _EVERY_MEMBER)(params)


@functools.partial(jax.jit, static_argnames=("compute", "mesh"))
def _window_nll(
    params: ModelParams,
    inputs: Tokens,
    targets: Tokens,
    states: RNNState,
    masks: Masks | None,
    compute: ComputeConfig,
    mesh: Mesh,
) -> tuple[Float[Array, "members time batch"], RNNState]:
    def read(inputs: Tokens, targets: Tokens, masks: Masks | None, params: Any, states: Any):
        def alone(params: ModelParams, state: RNNState):
            return token_nll(params, inputs, targets, state, masks, compute)

        return _vmap_members(alone)(params, states)

    specs = (_REPLICATED,) * 3 + (_EVERY_MEMBER,) * 2
    return _shard_map(read, mesh, specs, _EVERY_MEMBER)(inputs, targets, masks, params, states)


@jax.jit
def finite_members(params: ModelParams) -> Bool[Array, " members"]:
    """Whether every number of a member is finite."""
    return jax.vmap(all_finite)(params)


def fetch(x: Shaped[Array, "..."]) -> Shaped[np.ndarray, "..."]:
    """Returns the whole array, wherever its shards lie, on every host."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def mixture_nll(nll: MemberNLL) -> Float[np.ndarray, " predictions"]:
    """Nats of each token under the mean of the members' probabilities (section 4.1).

    -log mean exp(-nll) in float64, relative to the largest probability so that the
    mean does not underflow.
    """
    nll = nll.astype(np.float64)
    least = nll.min(axis=0)
    return least - np.log(np.exp(least[None, :] - nll).mean(axis=0))


def subsets(members: int, size: int) -> list[tuple[int, ...]]:
    """Distinct subsets of `size` members: all, or 100 drawn at random if there are more.

    Raises:
      InputError: `size` is below 1 or above `members`.
    """
    if not 0 < size <= members:
        raise InputError(f"a mixture of {size}: there are {members} members; take 1 to {members}")
    if math.comb(members, size) <= _DRAWS:
        return list(itertools.combinations(range(members), size))
    rng, drawn = np.random.default_rng(size), set()
    while len(drawn) < _DRAWS:
        drawn.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(drawn)


def mixture_perplexities(nll: MemberNLL, size: int) -> Float[np.ndarray, " subsets"]:
    """Perplexity of the mixture of each of the `subsets` of `size` members."""
    chosen = subsets(len(nll), size)
    return np.array([perplexity(mixture_nll(nll[list(subset)])) for subset in chosen])


def _train_member(
    config: Config,
    windows: Windows,
    mesh: Mesh,
    windows_per_epoch: int | None,
    record_grad_norm: bool,
) -> Callable[..., Any]:
    """`train_windows` for one member, as a device of the mesh runs it."""
    data_axis = DATA if mesh.shape[DATA] > 1 else None

    def train(state: TrainState, rates: Rates | None = None) -> Any:
        return train_windows(
            config, state, windows, rates, data_axis, windows_per_epoch, record_grad_norm
        )

    return train


def _make_init(
    config: Config, vocabulary_size: int, mesh: Mesh
) -> Callable[[jax.Array], TrainState]:
    """A function from a seed to its initial state, with the streams of one device."""
    devices = mesh.shape[DATA]
    streams = padded_batch_size(config.train.batch_size, devices) // devices

    def start(seed: jax.Array) -> TrainState:
        state = init_train_state(config, vocabulary_size, seed)
        return dataclasses.replace(state, rnn_state=zero_state(state.params.layers, streams))

    return start


def state_specs(*axes: str) -> TrainState:
    """How a state is sharded: over `axes`, and its recurrent state over the streams as well."""
    lead: Any = PartitionSpec(*axes)
    streams: Any = PartitionSpec(*axes, DATA)
    return TrainState(params=lead, opt_state=lead, rnn_state=streams, step=lead, key=lead)


def _shard_map(function: Callable[..., Any], mesh: Mesh, inputs: Any, outputs: Any) -> Any:
    # Gradients are reduced explicitly; with `check_vma`, JAX would reduce them again.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def _vmap_members(function: Callable[..., Any]) -> Callable[..., Any]:
    """`vmap`; for one member, the function itself, which compiles to a single model's program."""

    def call(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments)[0]) > 1:
            return jax.vmap(function)(*arguments)
        alone = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*alone))

    return call
