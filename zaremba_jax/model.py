"""The language model: embedding, deep RNN, softmax."""

import jax
import optax

from zaremba_jax.array_types import (
    DropoutMasks,
    Key,
    Logits,
    LSTMParams,
    LSTMState,
    ModelParams,
    SoftmaxParams,
    TokenNLL,
    Tokens,
)
from zaremba_jax.config import ModelConfig
from zaremba_jax.rnn import deep_rnn


def init_params(config: ModelConfig, vocabulary_size: int, *, key: Key) -> ModelParams:
    """Draws every parameter, biases too, float32 uniform in ±`init_scale` (section 4.1)."""
    keys = iter(jax.random.split(key, 3 * config.layers + 3))

    def uniform(*shape: int) -> jax.Array:
        scale = config.init_scale
        return jax.random.uniform(next(keys), shape, minval=-scale, maxval=scale)

    hidden, gates = config.hidden_size, 4 * config.hidden_size
    return ModelParams(
        embedding=uniform(vocabulary_size, hidden),
        layers=tuple(
            LSTMParams(
                input_weights=uniform(hidden, gates),
                recurrent_weights=uniform(hidden, gates),
                bias=uniform(gates),
            )
            for _ in range(config.layers)
        ),
        softmax=SoftmaxParams(
            weights=uniform(hidden, vocabulary_size), bias=uniform(vocabulary_size)
        ),
    )


def count_params(params: ModelParams) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def apply(
    params: ModelParams,
    tokens: Tokens,
    state: tuple[LSTMState, ...],
    masks: DropoutMasks | None = None,
) -> tuple[Logits, tuple[LSTMState, ...]]:
    """Predicts, after each token, the next one.

    Args:
      params: the model.
      tokens: ids of a window of text.
      state: one record a layer, from `rnn.zero_state` or from the window before.
      masks: the window's dropout; None evaluates.

    Returns:
      The logits of the next token at every time step, and the state after the last.
    """
    hidden, state = deep_rnn(params.layers, params.embedding[tokens], state, masks)
    return hidden @ params.softmax.weights + params.softmax.bias[None, None, :], state


def token_nll(logits: Logits, targets: Tokens) -> TokenNLL:
    """Negative log-likelihood of each target token, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
