"""Training: one pure step, and a scan of steps over part of an epoch on the device."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt

from zaremba_jax.array_types import (
    Key,
    Masks,
    ModelParams,
    RNNState,
    Scalar,
    Tokens,
    TrainState,
    Window,
    Windows,
)
from zaremba_jax.config import ComputeConfig, Config, RegularizerConfig
from zaremba_jax.model import init_params, softmax_params, unroll
from zaremba_jax.ops.softmax import softmax_nll
from zaremba_jax.optimizer import make_optimizer
from zaremba_jax.regularizers import (
    Rates,
    active_rates,
    drop_weights,
    penalizes_every_word,
    penalty,
    sample_masks,
)
from zaremba_jax.rnn import zero_state

StreamWeights = Float[Array, " batch"]
WindowRecord = Float[Array, "*statistics"]
# The settings that `train_step` also takes as numbers, in which members of one program can differ.
RATES = (
    "learning_rate",
    *(field.name for field in dataclasses.fields(RegularizerConfig) if field.type is float),
)


def init_train_state(
    config: Config,
    vocabulary_size: int,
    seed: Int[Array, ""] | UInt[Array, ""] | None = None,
) -> TrainState:
    """The state before the first window; `config.seed`, or `seed`, decides all of it.

    `train_windows` compiles once per `config`: for many seeds of one, pass them as `seed`.
    """
    # Independent of jax's default: with `rbg` keys, members trained side by side would have
    # other masks than each on its own.
    key = jax.random.key(config.seed if seed is None else seed, impl="threefry2x32")
    init_key, mask_key = jax.random.split(key)
    params: Any = init_params(config.model, vocabulary_size, key=init_key)
    return TrainState(
        params=params,
        opt_state=make_optimizer(config.train, windows_per_epoch=1).init(params),
        rnn_state=zero_state(params.layers, config.train.batch_size),
        step=jnp.zeros((), jnp.int32),
        key=mask_key,
    )


def window_loss(
    params: ModelParams,
    tokens: Tokens,
    targets: Tokens,
    rnn_state: RNNState,
    masks: Masks | None,
    compute: ComputeConfig = ComputeConfig(),
    rates: Rates | None = None,
    weight_key: Key | None = None,
    stream_weights: StreamWeights | None = None,
) -> tuple[Scalar, tuple[Scalar, RNNState]]:
    """The loss of a window: nats summed over time and averaged over the batch, plus the penalty.

    The sum over time gives a learning rate of 1 and clipping at 5 their meaning in
    section 4.1; a mean over both would take steps `unroll` times smaller.

    Args:
      params: the model.
      tokens: the window's input.
      targets: what follows each token.
      rnn_state: the state before the window.
      masks: the window's noise.
      compute: precision and kernel.
      rates: of the regularizers on weights and activations; None for none.
      weight_key: the key for `regularizers.drop_weights`, required if `dropconnect` is on.
      stream_weights: the weight of each stream in means over the batch; None for all equal.

    Returns:
      The loss, and a pair: the mean nats per token, without the penalty, and the state
      after the window.
    """
    rates = rates or {}
    noisy = drop_weights(rates, params, key=weight_key)
    unrolled = unroll(noisy, tokens, rnn_state, masks, compute)
    nll = softmax_nll(softmax_params(noisy), unrolled.dropped, targets, compute)
    activations = unrolled.outputs, unrolled.dropped
    if stream_weights is not None:
        nll *= stream_weights[None, :]
        root = jnp.sqrt(stream_weights)[None, :, None]  # the penalties on activations are squares
        activations = tuple(root * x for x in activations)
    loss = nll.sum(axis=0).mean() + penalty(rates, params, *activations)
    return loss, (nll.mean(), unrolled.state)


def train_step(
    config: Config,
    windows_per_epoch: int,
    state: TrainState,
    window: Window,
    rates: Rates | None = None,
    data_axis: str | None = None,
    record_grad_norm: bool = False,
) -> tuple[TrainState, WindowRecord]:
    """One window forward and backward, and one update of the parameters.

    The recurrent state is carried from window to window as data, so that no
    gradient flows across. It is reset to zero at the first window of each epoch; with
    `carry_over_epochs` it never is.

    Args:
      config: the run's configuration.
      windows_per_epoch: the number of windows in an epoch.
      state: the current state of the run.
      window: the input tokens and, one step later, the targets.
      rates: replacements for the rates of regularizers that are on in `config`, and for
        `learning_rate`, the rate of the first epochs.
      data_axis: inside `jax.shard_map`, the mesh axis over whose devices the streams are
        divided; `state.rnn_state` is this device's part, `window` is whole.
      record_grad_norm: whether to record the gradient norm too.

    Returns:
      The next state, and the mean nats per token of this window, with dropout on; with
      `record_grad_norm`, [2]: that mean, and the global norm of the gradient before clipping.

    Raises:
      ValueError: a rate is neither a regularizer's nor the learning rate.
    """
    window = window.astype(jnp.int32)  # a narrow dtype may have no id beyond the vocabulary
    rnn_state = state.rnn_state
    if not config.train.carry_over_epochs:
        epoch_starts = state.step % windows_per_epoch == 0
        rnn_state = jax.tree.map(lambda x: jnp.where(epoch_starts, 0, x), rnn_state)
    rates = {**active_rates(config.regularizers), **_known(rates or {})}
    tokens, vocabulary_size = window[:-1], len(state.params.embedding)
    mask_key, weight_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    masks = sample_masks(config, rates, tokens, vocabulary_size, key=mask_key)
    params, words = state.params, None
    if not config.model.tie_weights and not penalizes_every_word(rates):
        # The rows of all other words have a gradient of zero, which enters neither the norm nor
        # the update: training only the rows in use saves passes over the whole embedding.
        words, tokens = _words_in_use(tokens, vocabulary_size)
        rows = params.embedding.at[words].get(mode="fill", fill_value=0)
        params = dataclasses.replace(params, embedding=rows)
    targets, stream_weights = window[1:], None
    if data_axis is not None:
        # Every device computes masks and words in use for the whole window, so that they equal
        # those of a run on one device.
        tokens, targets, masks = local_streams((tokens, targets, masks), data_axis)
        stream_weights = _stream_weights(config.train.batch_size, data_axis)
    gradient, (nll, rnn_state) = jax.grad(window_loss, has_aux=True)(
        params,
        tokens,
        targets,
        rnn_state,
        masks,
        config.compute,
        rates,
        weight_key,
        stream_weights,
    )
    if data_axis is not None:
        gradient, nll = jax.lax.pmean((gradient, nll), data_axis)
    optimizer = make_optimizer(config.train, windows_per_epoch, rates.get("learning_rate"))
    updates, opt_state = optimizer.update(gradient, state.opt_state, cast(Any, params))
    params = cast(ModelParams, optax.apply_updates(cast(Any, params), updates))
    if words is not None:
        embedding = state.params.embedding.at[words].set(params.embedding, mode="drop")
        params = dataclasses.replace(params, embedding=embedding)
    next_state = dataclasses.replace(
        state, params=params, opt_state=opt_state, rnn_state=rnn_state, step=state.step + 1
    )
    record = jnp.stack([nll, optax.tree.norm(gradient)]) if record_grad_norm else nll
    return next_state, record


def _known(rates: Rates) -> Rates:
    if unknown := sorted(rates.keys() - set(RATES)):
        raise ValueError(f"rates of {', '.join(unknown)}: choose from {', '.join(sorted(RATES))}")
    return rates


def padded_batch_size(batch_size: int, devices: int) -> int:
    """The number of streams, padded with weightless ones to a multiple of `devices`."""
    return -(-batch_size // devices) * devices


def local_streams(tree: Any, data_axis: str) -> Any:
    """This device's part of arrays with the batch on axis 1, padded with zeros."""
    devices, index = jax.lax.axis_size(data_axis), jax.lax.axis_index(data_axis)

    def cut(x: jax.Array) -> jax.Array:
        size = padded_batch_size(x.shape[1], devices) // devices
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, size * devices - x.shape[1])
        return jax.lax.dynamic_slice_in_dim(jnp.pad(x, padding), index * size, size, axis=1)

    return jax.tree.map(cut, tree)


def _stream_weights(batch_size: int, data_axis: str) -> StreamWeights | None:
    """Weights of this device's streams that make means over devices means over the batch."""
    padded = padded_batch_size(batch_size, jax.lax.axis_size(data_axis))
    if padded == batch_size:
        return None
    weights = local_streams(jnp.full((1, batch_size), padded / batch_size), data_axis)
    return weights[0]


def _words_in_use(tokens: Tokens, vocabulary_size: int) -> tuple[Int[Array, " words"], Tokens]:
    """The distinct words of a window, and its tokens as indices into them.

    There is room for as many words as tokens; unused entries hold an id beyond the
    vocabulary.
    """
    words, indices = jnp.unique(
        tokens, size=tokens.size, fill_value=vocabulary_size, return_inverse=True
    )
    return words, indices.reshape(tokens.shape)


@functools.partial(
    jax.jit,
    static_argnames=("config", "data_axis", "windows_per_epoch", "record_grad_norm"),
    donate_argnames="state",
)
def train_windows(
    config: Config,
    state: TrainState,
    windows: Windows,
    rates: Rates | None = None,
    data_axis: str | None = None,
    windows_per_epoch: int | None = None,
    record_grad_norm: bool = False,
) -> tuple[TrainState, Float[Array, "windows *statistics"]]:
    """Trains on the next windows without leaving the device.

    Args:
      config: the run's configuration; static.
      state: the current state of the run; its buffers are donated.
      windows: from `corpus.windows`, all of an epoch or the next part of one.
      rates: as for `train_step`; not static, so that `vmap` can give each of many
        models its own.
      data_axis: as for `train_step`; static.
      windows_per_epoch: the number in an epoch, if `windows` holds only a part; static.
      record_grad_norm: as for `train_step`; static.

    Returns:
      The state after them, and what `train_step` returns for each window.
    """
    per_epoch = windows_per_epoch or len(windows)
    step = functools.partial(
        train_step,
        config,
        per_epoch,
        rates=rates,
        data_axis=data_axis,
        record_grad_norm=record_grad_norm,
    )
    return jax.lax.scan(step, state, windows)


@jax.jit
def all_finite(params: ModelParams) -> Bool[Array, ""]:
    """Whether every number of a model is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
