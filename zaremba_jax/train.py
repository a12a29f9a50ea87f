"""Training: one pure step, and a stretch of an epoch scanned on the device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import (
    DropoutMasks,
    LSTMState,
    ModelParams,
    Scalar,
    Tokens,
    TrainState,
    Window,
    Windows,
)
from zaremba_jax.config import ComputeConfig, Config
from zaremba_jax.model import init_params, token_nll
from zaremba_jax.optimizer import make_optimizer
from zaremba_jax.regularizers import sample_masks
from zaremba_jax.rnn import zero_state


def init_train_state(config: Config, vocabulary_size: int, windows_per_epoch: int) -> TrainState:
    """The state before the first window; `config.seed` decides all of it."""
    init_key, mask_key = jax.random.split(jax.random.key(config.seed))
    params: Any = init_params(config.model, vocabulary_size, key=init_key)
    return TrainState(
        params=params,
        opt_state=make_optimizer(config.train, windows_per_epoch).init(params),
        rnn_state=zero_state(params.layers, config.train.batch_size),
        step=jnp.zeros((), jnp.int32),
        key=mask_key,
    )


def window_loss(
    params: ModelParams,
    tokens: Tokens,
    targets: Tokens,
    rnn_state: tuple[LSTMState, ...],
    masks: DropoutMasks | None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Scalar, tuple[Scalar, tuple[LSTMState, ...]]]:
    """The loss of a window: nats summed over time and averaged over the batch.

    The sum over time is what makes a rate of 1 and a clip at 5 mean what they
    mean in section 4.1; a mean over both would take steps `unroll` times smaller.

    Returns:
      The loss, and beside it the mean nats a token and the state after the window.
    """
    nll, rnn_state = token_nll(params, tokens, targets, rnn_state, masks, compute)
    return nll.sum(axis=0).mean(), (nll.mean(), rnn_state)


def train_step(
    config: Config, windows_per_epoch: int, state: TrainState, window: Window
) -> tuple[TrainState, Scalar]:
    """One window forward and backward, and one update of the parameters.

    The recurrent state is carried from window to window as data, so that no
    gradient flows across, and is zero again at the first window of each epoch.

    Returns:
      The next state, and the mean nats a token of this window, dropout on.
    """
    epoch_starts = state.step % windows_per_epoch == 0
    rnn_state = jax.tree.map(lambda x: jnp.where(epoch_starts, 0, x), state.rnn_state)
    time, batch = window.shape[0] - 1, window.shape[1]
    masks = sample_masks(
        config.regularizers,
        (time, batch, config.model.hidden_size),
        config.model.layers,
        key=jax.random.fold_in(state.key, state.step),
    )
    # The rows of all other words have a gradient of zero, which enters neither the norm nor the
    # update: training the rows in use alone spares passes over the whole embedding.
    words, tokens = _words_in_use(window[:-1], len(state.params.embedding))
    rows = state.params.embedding.at[words].get(mode="fill", fill_value=0)
    params: Any = dataclasses.replace(state.params, embedding=rows)
    gradient, (nll, rnn_state) = jax.grad(window_loss, has_aux=True)(
        params, tokens, window[1:], rnn_state, masks, config.compute
    )
    optimizer = make_optimizer(config.train, windows_per_epoch)
    updates, opt_state = optimizer.update(gradient, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    embedding = state.params.embedding.at[words].set(params.embedding, mode="drop")
    next_state = dataclasses.replace(
        state,
        params=dataclasses.replace(params, embedding=embedding),
        opt_state=opt_state,
        rnn_state=rnn_state,
        step=state.step + 1,
    )
    return next_state, nll


def _words_in_use(tokens: Tokens, vocabulary_size: int) -> tuple[Int[Array, " words"], Tokens]:
    """The different words of a window, and its tokens as places among them.

    There is room for as many words as tokens; places left over hold an id beyond
    the vocabulary.
    """
    words, places = jnp.unique(
        tokens, size=tokens.size, fill_value=vocabulary_size, return_inverse=True
    )
    return words, places.reshape(tokens.shape)


@functools.partial(jax.jit, static_argnames=("config", "count"), donate_argnames="state")
def train_windows(
    config: Config, state: TrainState, windows: Windows, count: int
) -> tuple[TrainState, Float[Array, " count"]]:
    """Trains on the next `count` windows without leaving the device.

    Args:
      config: the run; compiled in.
      state: where the run stands; its buffers are given up to the result.
      windows: all windows of an epoch, from `corpus.windows`; `state.step` tells
        which comes next, and the first follows the last.
      count: how many; compiled in.

    Returns:
      The state after them, and the mean nats a token of each window, dropout on.
    """
    upcoming = (state.step + jnp.arange(count)) % len(windows)
    return jax.lax.scan(
        functools.partial(train_step, config, len(windows)), state, windows[upcoming]
    )
