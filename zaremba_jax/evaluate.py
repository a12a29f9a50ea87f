"""Negative log-likelihood and perplexity of a text; dropout off except in `monte_carlo_nll`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zaremba_jax.array_types import Key, ModelParams, RNNState, TokenNLL, Tokens
from zaremba_jax.config import Config
from zaremba_jax.errors import InputError
from zaremba_jax.limits import whole_number
from zaremba_jax.model import Model, Predictor
from zaremba_jax.regularizers import active_rates, drop_weights, sample_masks

# With 10,000 words, 512 would need more than 32 MB, which glibc gives back to the system after each
# window, and the system clears again, page by page, for the next.
TOKENS_AT_ONCE = 256
WindowScorer = Callable[[Tokens, Tokens, Any], tuple[jax.Array, Any]]
window_nll = jax.jit(Predictor.token_nll)


def text_nll(model: Model, ids: np.ndarray, streams: int = 1) -> np.ndarray:
    """Nats of every token of a text but the first, each predicted once.

    One stream is the reported protocol: the state runs from the first token to the
    last. More streams give a faster estimate for use during training: the text is cut
    into that many stretches of equal length, read side by side, each from the zero
    state.

    Args:
      model: the model, evaluated as its configuration has it.
      ids: the text, [N] with N at least 2.
      streams: the number of stretches.

    Returns:
      [N - 1], in the order of the text and the parameters' type.

    Raises:
      InputError: the text has no token to predict, `streams` is not a whole number of at least 1,
        or as for `Model.check_ids`.
    """
    model.check_ids(ids)
    predictor = model.predictor
    read = functools.partial(window_nll, predictor)
    return nll_by_windows(read, ids, streams, predictor.zero_state)


def nll_by_windows(
    read: WindowScorer,
    ids: np.ndarray,
    streams: int,
    start: Callable[[int], Any],
    unroll: int | None = None,
) -> np.ndarray:
    """What `text_nll` returns, from a function that reads one window after another.

    Args:
      read: maps inputs, targets and the state before a window to the nats of its targets,
        [..., time, streams], and the state after it.
      ids: the text.
      streams: the number of stretches.
      start: gives the state before the first window, of this many streams.
      unroll: the time steps of a window; None for as many as make `TOKENS_AT_ONCE` tokens.

    Returns:
      [..., N - 1], in the type of the nats of `read`.

    Raises:
      InputError: the text has no token to predict, or `streams` or `unroll` is not a whole number
        of at least 1.
    """
    streams = whole_number("streams", streams, at_least=1)
    predictions = count_predictions(ids)
    at_once = max(TOKENS_AT_ONCE // streams, 1) if unroll is None else unroll
    unroll = whole_number("unroll", at_once, at_least=1)
    length = -(-predictions // streams)  # of a stretch, rounded up
    count = -(-length // unroll)

    def columns(tokens: np.ndarray) -> np.ndarray:
        stretches = np.pad(tokens, (0, streams * length - predictions)).reshape(streams, length)
        padded = np.pad(stretches, ((0, 0), (0, count * unroll - length)))
        return padded.T.reshape(count, unroll, streams)

    results, state = [], start(streams)
    for pair in zip(columns(ids[:-1]), columns(ids[1:]), strict=True):
        # On the device, in one dtype whatever the text's on disk.
        inputs, targets = (jnp.asarray(tokens, jnp.int32) for tokens in pair)
        nll, state = read(inputs, targets, state)
        results.append(nll)
    stretches = np.concatenate(results, axis=-2)[..., :length, :].swapaxes(-2, -1)
    return stretches.reshape(*stretches.shape[:-2], -1)[..., :predictions]


def monte_carlo_nll(model: Model, ids: np.ndarray, samples: int, *, key: Key) -> np.ndarray:
    """Nats of every token of a text but the first, with noise left on and averaged over.

    Monte Carlo dropout (Gal & Ghahramani 2016, https://arxiv.org/abs/1512.05287, section
    4.1): each sample reads the text in one stream as in training, with fresh masks and dropped
    weights every `model.config.train.unroll` steps and its own state; for each token, the
    probabilities of the samples are averaged.

    Args:
      model: the model, with the configuration that it was trained with.
      ids: the text, [N] with N at least 2.
      samples: the number of samples to average over.
      key: decides the noise of all samples.

    Returns:
      [N - 1], in the order of the text and the parameters' type.

    Raises:
      InputError: the text has no token to predict, `samples` is not a whole number of at least 1,
        or as for `Model.check_ids`.
    """
    samples = whole_number("samples", samples, at_least=1)
    model.check_ids(ids)

    def start(streams: int) -> tuple[int, RNNState]:
        state = model.predictor.zero_state(streams)
        return 0, jax.tree.map(lambda x: jnp.broadcast_to(x, (samples, *x.shape)), state)

    def read(inputs: Tokens, targets: Tokens, state: tuple[int, RNNState]) -> Any:
        window, states = state
        keys = jax.random.split(jax.random.fold_in(key, window), samples)
        nll, states = _sampled_window_nll(model.config, model.params, inputs, targets, states, keys)
        return nll, (window + 1, states)

    return nll_by_windows(read, ids, 1, start, model.config.train.unroll)


@functools.partial(jax.jit, static_argnames="config")
def _sampled_window_nll(
    config: Config,
    params: ModelParams,
    inputs: Tokens,
    targets: Tokens,
    states: RNNState,
    keys: jax.Array,
) -> tuple[jax.Array, RNNState]:
    """Nats [time, 1] of one stream under the mixture of samples, and their states [samples, …]."""
    rates = active_rates(config.regularizers)

    def sample(state: RNNState, key: Key) -> tuple[TokenNLL, RNNState]:
        mask_key, weight_key = jax.random.split(key)
        masks = sample_masks(config, rates, inputs, len(params.embedding), key=mask_key)
        noisy = drop_weights(rates, params, key=weight_key)
        return Predictor(noisy, masks, config.compute).token_nll(inputs, targets, state)

    nll, states = jax.vmap(sample)(states, keys)
    return jnp.log(len(nll)) - jax.nn.logsumexp(-nll, axis=0), states


def count_predictions(ids: np.ndarray) -> int:
    """The number of predicted tokens of a text: all but the first.

    Raises:
      InputError: there are none.
    """
    if len(ids) < 2:
        raise InputError(f"a text of {len(ids)} tokens has nothing to predict; give at least 2")
    return len(ids) - 1


def perplexity(nll: ArrayLike) -> float:
    """exp of the mean nats, summed in float64; inf if it exceeds what a float holds.

    >>> round(perplexity(np.log([2.0, 8.0])), 4)
    4.0
    """
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(np.asarray(nll), dtype=np.float64)))
