"""Negative log-likelihood of a whole text, and its perplexity. Dropout is off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import LSTMState, ModelParams, TokenNLL, Tokens
from zaremba_jax.config import ComputeConfig
from zaremba_jax.model import token_nll
from zaremba_jax.rnn import zero_state

TOKENS_AT_ONCE = 512


@functools.partial(jax.jit, static_argnames="compute")
def window_nll(
    params: ModelParams,
    inputs: Tokens,
    targets: Tokens,
    state: tuple[LSTMState, ...],
    compute: ComputeConfig,
) -> tuple[TokenNLL, tuple[LSTMState, ...]]:
    """Nats of each target, and the state after the window."""
    return token_nll(params, inputs, targets, state, compute=compute)


def text_nll(
    params: ModelParams,
    ids: np.ndarray,
    streams: int = 1,
    compute: ComputeConfig = ComputeConfig(),
) -> np.ndarray:
    """Nats of every token of a text but the first, each predicted once.

    With one stream, the reported protocol: the state runs from the first token
    to the last. With more, a faster estimate for use during training: the text
    is cut into that many stretches of equal length, side by side, each of which
    starts from the zero state.

    Args:
      params: the model.
      ids: the text, [N] with N at least 2.
      streams: how many stretches.
      compute: precision and kernel.

    Returns:
      float32 [N - 1], in the order of the text.

    Raises:
      ValueError: the text has no token to predict.
    """
    predictions = len(ids) - 1
    if predictions < 1:
        raise ValueError(f"a text of {len(ids)} tokens has nothing to predict; give at least 2")
    unroll = max(TOKENS_AT_ONCE // streams, 1)
    length = -(-predictions // streams)  # of a stretch, rounded up
    count = -(-length // unroll)

    def columns(tokens: np.ndarray) -> np.ndarray:
        stretches = np.pad(tokens, (0, streams * length - predictions)).reshape(streams, length)
        padded = np.pad(stretches, ((0, 0), (0, count * unroll - length)))
        return padded.T.reshape(count, unroll, streams)

    state = zero_state(params.layers, streams)
    results = []
    for inputs, targets in zip(columns(ids[:-1]), columns(ids[1:]), strict=True):
        nll, state = window_nll(params, jnp.asarray(inputs), jnp.asarray(targets), state, compute)
        results.append(nll)
    return np.concatenate(results)[:length].T.reshape(-1)[:predictions]


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean of nats, summed in float64."""
    return float(np.exp(np.mean(nll, dtype=np.float64)))
