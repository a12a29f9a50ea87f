"""A continuous cache: words that followed states like the present one become more probable.

Grave, Joulin & Usunier (2017), *Improving Neural Language Models with a Continuous
Cache*, https://arxiv.org/abs/1612.04426, section 3. The last `window` outputs h[i] of the last
layer are kept with the words x[i + 1] that came after them, and

    p_cache(w) ∝ sum over i < t of [w = x[i+1]] exp(theta * h[t] . h[i])
    p(w) = (1 - weight) * p_model(w) + weight * p_cache(w)
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import RNNState, TokenNLL, Tokens
from zaremba_jax.evaluate import TOKENS_AT_ONCE, count_predictions, nll_by_windows
from zaremba_jax.limits import check_limits, whole_number
from zaremba_jax.model import Model, Predictor

_EMPTY = -1  # stands for a word until the memory is full


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How much the cache keeps and how much it counts.

    Raises:
      InputError: a value is outside its limits.
    """

    window: int  # number of positions kept
    theta: float  # how strongly similarity counts
    weight: float  # of the cache in the mixture

    def __post_init__(self):
        window = whole_number("cache_window", self.window, at_least=1)
        object.__setattr__(self, "window", window)
        check_limits("cache_theta", self.theta, at_least=0)
        check_limits("cache_weight", self.weight, above=0, below=1)


@struct.dataclass
class Memory:
    """The contents of the cache, oldest first."""

    outputs: Float[Array, "window hidden"]
    words: Int[Array, " window"]


def neural_cache_nll(model: Model, ids: np.ndarray, config: CacheConfig) -> np.ndarray:
    """`evaluate.text_nll` with one stream and a cache that starts out empty.

    While it is empty, the model's probability is used on its own.

    Raises:
      InputError: the text has no token to predict, or as for `Model.check_ids`.
    """
    model.check_ids(ids)
    predictor, predictions = model.predictor, count_predictions(ids)
    kept, hidden = min(config.window, predictions), len(model.params.layers[-1].recurrent_weights)
    memory = Memory(
        outputs=jnp.zeros((kept, hidden), model.params.embedding.dtype),
        words=jnp.full(kept, _EMPTY, jnp.int32),
    )

    def start(streams: int) -> tuple[RNNState, Memory]:
        return predictor.zero_state(streams), memory

    read = functools.partial(_window_nll, predictor, config)
    return nll_by_windows(read, ids, 1, start, min(TOKENS_AT_ONCE, predictions))


@functools.partial(jax.jit, static_argnames="config")
def _window_nll(
    predictor: Predictor,
    config: CacheConfig,
    inputs: Tokens,
    targets: Tokens,
    state: tuple[RNNState, Memory],
) -> tuple[TokenNLL, tuple[RNNState, Memory]]:
    rnn_state, memory = state
    unrolled = predictor.unroll(inputs, rnn_state)
    nll = predictor.nll_of(unrolled.dropped, targets)
    mixed, memory = mix(nll[:, 0], unrolled.outputs[:, 0], targets[:, 0], memory, config)
    return mixed[:, None], (unrolled.state, memory)


def mix(
    nll: Float[Array, " time"],
    outputs: Float[Array, "time hidden"],
    targets: Int[Array, " time"],
    memory: Memory,
    config: CacheConfig,
) -> tuple[Float[Array, " time"], Memory]:
    """The nats of a stretch of text under model and cache, from those under the model.

    Args:
      nll: the nats of each target under the model.
      outputs: h[t] of the last layer, from which each was predicted.
      targets: the words.
      memory: the memory before the stretch; its size stays the same.
      config: theta and weight of the cache.

    Returns:
      The nats, and the memory after the stretch.
    """
    window, kept = len(memory.words), jnp.concatenate([memory.outputs, outputs])
    words = jnp.concatenate([memory.words, targets])
    steps, positions = jnp.arange(len(nll))[:, None], jnp.arange(len(words))[None, :]
    # Step t is at position window + t and sees the `window` positions before it.
    visible = (positions >= steps) & (positions < steps + window) & (words != _EMPTY)[None, :]
    products, any_visible = outputs @ kept.T, visible.any(axis=1)
    largest = jnp.where(visible, products, -jnp.inf).max(axis=1)
    largest = jnp.where(any_visible, largest, 0)[:, None]  # taken off before theta can make it inf
    similarity = jnp.where(visible, config.theta * (products - largest), -jnp.inf)
    of_target = jnp.where(words[None, :] == targets[:, None], similarity, -jnp.inf)
    total = jnp.where(any_visible, jax.nn.logsumexp(similarity, axis=1), 0)  # never -inf - -inf
    in_cache = jax.nn.logsumexp(of_target, axis=1) - total
    log_p = jnp.logaddexp(math.log1p(-config.weight) - nll, math.log(config.weight) + in_cache)
    new_memory = Memory(outputs=kept[-window:], words=words[-window:])
    return jnp.where(any_visible, -log_p, nll), new_memory
