"""The language model: embedding, deep RNN, softmax."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import (
    Key,
    LayerParams,
    Logits,
    Masks,
    ModelParams,
    Outputs,
    RNNState,
    SoftmaxParams,
    TiedSoftmaxParams,
    TokenNLL,
    Tokens,
    TwoBiasLayerParams,
)
from zaremba_jax.cells import CELLS, drop
from zaremba_jax.config import ComputeConfig, ModelConfig
from zaremba_jax.ops.embedding import embedding_lookup
from zaremba_jax.ops.softmax import logits, softmax_nll
from zaremba_jax.rnn import deep_rnn


def init_params(config: ModelConfig, vocabulary_size: int, *, key: Key) -> ModelParams:
    """Draws every parameter, biases too, uniformly from ±`init_scale` (section 4.1).

    They are float32, or float64 under `jax_enable_x64`.
    """
    keys = iter(jax.random.split(key, (3 + config.second_bias) * config.layers + 3))

    def uniform(*shape: int) -> jax.Array:
        scale = config.init_scale
        return jax.random.uniform(next(keys), shape, minval=-scale, maxval=scale)

    features, hidden = config.features, config.hidden_size
    gates = len(CELLS[config.cell].gates) * hidden

    def layer(depth: int) -> LayerParams:
        inputs = uniform(hidden if depth else features, gates)
        recurrent, bias = uniform(hidden, gates), uniform(gates)
        if config.second_bias:
            return TwoBiasLayerParams(
                inputs, recurrent, bias, cell=config.cell, second_bias=uniform(gates)
            )
        return LayerParams(inputs, recurrent, bias, cell=config.cell)

    return ModelParams(
        embedding=uniform(vocabulary_size, features),
        layers=tuple(map(layer, range(config.layers))),
        softmax=(
            TiedSoftmaxParams(bias=uniform(vocabulary_size))
            if config.tie_weights
            else SoftmaxParams(
                weights=uniform(hidden, vocabulary_size), bias=uniform(vocabulary_size)
            )
        ),
    )


def count_params(params: ModelParams) -> int:
    """The number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Unrolled(NamedTuple):
    """The network's results for a window, before the softmax."""

    outputs: Outputs  # h[t] of the last layer
    dropped: Outputs  # D(h[t]), which the softmax reads
    state: RNNState  # after the last step


def unroll(
    params: ModelParams,
    tokens: Tokens,
    state: RNNState,
    masks: Masks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> Unrolled:
    """Everything but the softmax; arguments and errors as for `apply`."""
    dtype = params.embedding.dtype
    if jnp.finfo(dtype).bits < 32:
        raise ValueError(
            f"parameters of {dtype}: too imprecise for training and for sums; keep them float32,"
            ' and get bfloat16 products with ComputeConfig(precision="bfloat16")'
        )
    masks = masks or Masks()
    # `scan` also supports forward-mode differentiation, which `embedding_lookup` does not.
    look = operator.getitem if compute.kernel == "scan" else embedding_lookup
    inputs = drop(look(params.embedding, tokens), masks.words)
    outputs, state = deep_rnn(params.layers, inputs, state, masks, compute)
    return Unrolled(outputs, drop(outputs, masks.output), state)


def apply(
    params: ModelParams,
    tokens: Tokens,
    state: RNNState,
    masks: Masks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Logits, RNNState]:
    """Predicts, after each token, the next one.

    Args:
      params: the model.
      tokens: ids of a window of text; one that is not in the vocabulary is read as some word of
        it, unnoticed.
      state: one record per layer, from `rnn.zero_state` or from the previous window.
      masks: the window's noise; to evaluate, None or, with zoneout, those of
        `regularizers.expected_masks`.
      compute: precision and kernel.

    Returns:
      The logits of the next token at every time step, and the state after the last.

    Raises:
      ValueError: the parameters are in half precision.
    """
    unrolled = unroll(params, tokens, state, masks, compute)
    return logits(softmax_params(params), unrolled.dropped, compute), unrolled.state


def token_nll(
    params: ModelParams,
    tokens: Tokens,
    targets: Tokens,
    state: RNNState,
    masks: Masks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[TokenNLL, RNNState]:
    """Negative log-likelihood, in nats, of `targets[t]` after the tokens up to t.

    Equals the cross-entropy of the logits of `apply`, with fewer passes over them;
    arguments and errors as for `apply`.
    """
    unrolled = unroll(params, tokens, state, masks, compute)
    return softmax_nll(softmax_params(params), unrolled.dropped, targets, compute), unrolled.state


def softmax_params(params: ModelParams) -> SoftmaxParams:
    """The softmax layer; tied weights are the embedding's (Press & Wolf 2017)."""
    if isinstance(params.softmax, SoftmaxParams):
        return params.softmax
    return SoftmaxParams(weights=params.embedding.T, bias=params.softmax.bias)
