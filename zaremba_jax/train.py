"""Training: one pure step, and a scan of steps over part of an epoch on the device.

A step reads a window, the paper's minibatch: the next `unroll` tokens of every stream.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, UInt

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
    WindowStatistics,
)
from zaremba_jax.config import ComputeConfig, Config, settings
from zaremba_jax.errors import InputError
from zaremba_jax.limits import whole_number
from zaremba_jax.model import Predictor, init_params, named_leaves
from zaremba_jax.optimizer import add_to_mean, make_optimizer
from zaremba_jax.parallel.streams import WHOLE_BATCH, BatchShare, StreamWeights
from zaremba_jax.regularizers import (
    Rates,
    active_rates,
    drop_weights,
    penalizes_every_word,
    penalty,
    sample_masks,
)
from zaremba_jax.rnn import zero_state

WordIds = Int[Array, " words"]
# The settings that `train_step` also takes as numbers, in which members of one program can differ.
RATES = (
    "learning_rate",
    "average_from",
    *(name for name, x in settings().items() if x.section == "regularizers" and x.kind is float),
)


def init_train_state(
    config: Config,
    vocabulary_size: int,
    seed: int | Int[Array, ""] | UInt[Array, ""] | None = None,
    params: ModelParams | None = None,
) -> TrainState:
    """The state before the first window; `config.seed`, or `seed`, decides all of it.

    With `params`, of which it has copies, training goes on from them; the seed decides the masks.
    `train_windows` compiles once per `config`: for many seeds of one, pass them as `seed`.

    Raises:
      InputError: `params` have other shapes than those of the configuration.
    """
    # Independent of jax's default: with `rbg` keys, members trained side by side would have
    # other masks than each on its own.
    key = jax.random.key(config.seed if seed is None else seed, impl="threefry2x32")
    init_key, mask_key = jax.random.split(key)
    start: Any = init_params(config.model, vocabulary_size, key=init_key)
    if params is not None:
        _check_shapes(params, start)
        start = jax.tree.map(lambda new, given: jnp.array(given, new.dtype), start, params)
    return TrainState(
        params=start,
        opt_state=make_optimizer(config.train, windows_per_epoch=1).init(start),
        rnn_state=zero_state(start.layers, config.train.batch_size),
        step=jnp.zeros((), jnp.int32),
        key=mask_key,
        # Copies, since the buffers of a state are donated, each of them once.
        average=jax.tree.map(jnp.copy, start) if config.train.averages else None,
        best=jax.tree.map(jnp.copy, start) if config.train.keep == "best" else None,
    )


def _check_shapes(params: ModelParams, wanted: ModelParams) -> None:
    """Refuses parameters of other shapes than those wanted; both may be traced."""
    given, expected = (
        {name: jnp.shape(leaf) for name, leaf in named_leaves(tree).items()}
        for tree in (params, wanted)
    )
    for name in expected | given:
        if given.get(name) != expected.get(name):
            raise InputError(
                f"params: {name} ({given.get(name, 'none')} there, {expected.get(name, 'none')}"
                " expected); give the configuration and vocabulary_size that they were made with"
            )


def window_loss(
    params: ModelParams,
    tokens: Tokens,
    targets: Tokens,
    rnn_state: RNNState,
    masks: Masks | None = None,
    *,
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

    Raises:
      InputError: as for `drop_weights` and for `Predictor.unroll`.
    """
    rates = rates or {}
    network = Predictor(drop_weights(rates, params, key=weight_key), masks, compute)
    unrolled = network.unroll(tokens, rnn_state)
    nll = network.nll_of(unrolled.dropped, targets)
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
    share: BatchShare = WHOLE_BATCH,
) -> tuple[TrainState, WindowStatistics]:
    """One window forward and backward, and one update of the parameters.

    The recurrent state is carried from window to window as data, so that no
    gradient flows across. It is reset to zero at the first window of each epoch; with
    `carry_over_epochs` it never is.

    Args:
      config: the run's configuration.
      windows_per_epoch: the number of windows in an epoch.
      state: the current state of the run.
      window: the input tokens and, one step later, the targets.
      rates: in place of the configuration's: strengths of regularizers, `average_from`, and
        `learning_rate`, the rate of the first epochs, or, with `decay_when_stalled`, the present
        one. They may be traced, so that nothing checks their limits.
      share: this device's part of the batch, as `state.rnn_state` is; `window` is whole. By default
        all of it: `part`, `own` and `mean` then return what they are given.

    Returns:
      The next state, and the statistics of this window.

    Raises:
      InputError: a name in `rates` is not in `RATES`, or is `average_from` and nothing is averaged.
    """
    rates = {**active_rates(config.regularizers), **_known(rates or {})}
    window = window.astype(jnp.int32)  # a narrow dtype may have no id beyond the vocabulary
    tokens, targets = window[:-1], window[1:]
    mask_key, weight_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    masks = sample_masks(config, rates, tokens, len(state.params.embedding), key=mask_key)
    params, tokens, rows = _take_rows(config, rates, state.params, tokens)
    tokens, targets, masks = share.part((tokens, targets, masks))
    loss = functools.partial(
        window_loss,
        compute=config.compute,
        rates=rates,
        weight_key=weight_key,
        stream_weights=share.weights(config.train.batch_size),
    )
    start = _state_before(config, windows_per_epoch, state)
    gradient, (nll, end) = jax.grad(loss, has_aux=True)(
        share.own(params), tokens, targets, start, masks
    )
    gradient, nll = share.mean((gradient, nll))
    # Section 4.1: the global norm is clipped, and the rate decays from epoch to epoch.
    optimizer = make_optimizer(
        config.train, windows_per_epoch, rates.get("learning_rate"), rates.get("weight_decay")
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, cast(Any, params))
    params = _put_rows(state.params, optax.apply_updates(cast(Any, params), updates), rows)
    next_state = dataclasses.replace(
        state,
        params=params,
        opt_state=opt_state,
        rnn_state=end,
        step=state.step + 1,
        average=_averaged(config, windows_per_epoch, rates, state, params),
    )
    return next_state, WindowStatistics(nll, optax.tree.norm(gradient))


def _averaged(
    config: Config, windows_per_epoch: int, rates: Rates, state: TrainState, params: ModelParams
) -> ModelParams | None:
    """The mean of the parameters after each step since averaging began; before that, the last."""
    if state.average is None:
        if "average_from" in rates:
            raise InputError(
                "rates of average_from: the configuration averages nothing; set it there"
            )
        return None
    begins = jnp.asarray(rates.get("average_from", config.train.average_from), jnp.int32)
    epoch, window = jnp.divmod(state.step, windows_per_epoch)
    since = epoch + 1 - begins  # in epochs; in windows, a late beginning would overflow
    count = jnp.where((begins > 0) & (since >= 0), since * windows_per_epoch + window + 1, 1)
    return add_to_mean(state.average, params, count)


def _known(rates: Rates) -> Rates:
    if unknown := sorted(rates.keys() - set(RATES)):
        raise InputError(f"rates of {', '.join(unknown)}: choose from {', '.join(sorted(RATES))}")
    return rates


def _state_before(config: Config, windows_per_epoch: int, state: TrainState) -> RNNState:
    """The recurrent state that a window starts from: zero at the first window of an epoch."""
    if config.train.carry_over_epochs:
        return state.rnn_state
    epoch_starts = state.step % windows_per_epoch == 0
    return jax.tree.map(lambda x: jnp.where(epoch_starts, 0, x), state.rnn_state)


def _take_rows(
    config: Config, rates: Rates, params: ModelParams, tokens: Tokens
) -> tuple[ModelParams, Tokens, WordIds | None]:
    """The parameters with only those rows of the embedding that the window uses.

    The rows of all other words have a gradient of zero, which enters neither the norm nor the
    update: training only the rows in use saves passes over the whole embedding.

    Returns:
      The parameters; the tokens as indices of their rows; and the words of the rows, padded with
      ids beyond the vocabulary. None, with everything as it was, if all words have a gradient,
      or move without one.
    """
    moves_every_word = config.train.optimizer == "adam" or penalizes_every_word(rates)
    if config.model.tie_weights or moves_every_word:
        return params, tokens, None
    words, indices = jnp.unique(
        tokens, size=tokens.size, fill_value=len(params.embedding), return_inverse=True
    )
    rows = params.embedding.at[words].get(mode="fill", fill_value=0)
    return dataclasses.replace(params, embedding=rows), indices.reshape(tokens.shape), words


def _put_rows(whole: ModelParams, trained: Any, words: WordIds | None) -> ModelParams:
    """The trained parameters, with the rows that `_take_rows` took back in the embedding."""
    if words is None:
        return trained
    embedding = whole.embedding.at[words].set(trained.embedding, mode="drop")
    return dataclasses.replace(trained, embedding=embedding)


@functools.partial(
    jax.jit,
    static_argnames=("config", "share", "windows_per_epoch"),
    donate_argnames="state",
)
def train_windows(
    config: Config,
    state: TrainState,
    windows: Windows,
    rates: Rates | None = None,
    share: BatchShare = WHOLE_BATCH,
    windows_per_epoch: int | None = None,
) -> tuple[TrainState, WindowStatistics]:
    """Trains on the next windows without leaving the device.

    What follows from validation is left to the caller: with `keep="best"`, `better_of` has to
    renew `state.best`, which is the initial model at first; `decay_when_stalled` and
    `average_after_stall` act through `rates`; `patience` is when to stop calling.
    `random_offset` decides the windows (`data.windows.TextWindows`).

    Args:
      config: the run's configuration; static.
      state: the current state of the run; its buffers are donated.
      windows: from `data.windows.windows`, all of an epoch or the next part of one.
      rates: as for `train_step`; not static, so that `vmap` can give each of many
        models its own.
      share: as for `train_step`; static.
      windows_per_epoch: the number in an epoch, if `windows` holds only a part; static.

    Returns:
      The state after them, and the statistics of each window, [windows].

    Raises:
      InputError: the windows are not of the configuration's unroll and batch size,
        `windows_per_epoch` is below 1, or as for `train_step`.
    """
    unroll, batch_size = config.train.unroll, config.train.batch_size
    if windows.shape[1:] != (unroll + 1, batch_size):
        raise InputError(
            f"windows of shape {windows.shape}: with unroll={unroll} and batch_size={batch_size} it"
            f" ends in {unroll + 1}, {batch_size}; cut them with the same"
        )
    per_epoch = len(windows) if windows_per_epoch is None else windows_per_epoch
    per_epoch = whole_number("windows_per_epoch", per_epoch, at_least=1)
    step = functools.partial(train_step, config, per_epoch, rates=rates, share=share)
    return jax.lax.scan(step, state, windows)


@functools.partial(jax.jit, donate_argnames="best")
def better_of(
    model: ModelParams, best: ModelParams, is_better: Bool[Array, "*members"]
) -> ModelParams:
    """`model` where it is better, else `best`, whose buffers are donated."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        of_members = is_better.reshape(is_better.shape + (1,) * (new.ndim - is_better.ndim))
        return jnp.where(of_members, new, old)

    return jax.tree.map(choose, model, best)


@jax.jit
def all_finite(params: ModelParams) -> Bool[Array, ""]:
    """Whether every number of a model is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
