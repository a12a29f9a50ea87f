"""The language model: embedding, deep RNN, softmax."""

import jax

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
from zaremba_jax.config import ComputeConfig, ModelConfig
from zaremba_jax.rnn import deep_rnn
from zaremba_jax.softmax import logits, softmax_nll


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
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Logits, tuple[LSTMState, ...]]:
    """Predicts, after each token, the next one.

    Args:
      params: the model.
      tokens: ids of a window of text.
      state: one record a layer, from `rnn.zero_state` or from the window before.
      masks: the window's dropout; None evaluates.
      compute: precision and kernel.

    Returns:
      The logits of the next token at every time step, and the state after the last.
    """
    hidden, state = deep_rnn(params.layers, params.embedding[tokens], state, masks, compute)
    return logits(params.softmax, hidden, compute), state


def token_nll(
    params: ModelParams,
    tokens: Tokens,
    targets: Tokens,
    state: tuple[LSTMState, ...],
    masks: DropoutMasks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[TokenNLL, tuple[LSTMState, ...]]:
    """Negative log-likelihood, in nats, of `targets[t]` after the tokens up to t.

    What a softmax of `apply` gives, with fewer passes over the logits; arguments
    as there.
    """
    hidden, state = deep_rnn(params.layers, params.embedding[tokens], state, masks, compute)
    return softmax_nll(params.softmax, hidden, targets, compute), state
