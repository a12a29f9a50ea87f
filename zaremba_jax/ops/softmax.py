"""The softmax over the vocabulary, and its loss without the extra passes of autodiff."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import Logits, Outputs, TokenNLL, Tokens
from zaremba_jax.config import ComputeConfig, Precision
from zaremba_jax.ops.products import dot, matmul, operand, weight_gradient
from zaremba_jax.ops.varying import varying_alike

Weights = Float[Array, "hidden vocabulary"]
Bias = Float[Array, " vocabulary"]


def logits(
    weights: Weights, bias: Bias, hidden: Outputs, compute: ComputeConfig = ComputeConfig()
) -> Logits:
    """The affine map of the last layer's output, before normalization."""
    return matmul(hidden, weights, compute.precision) + bias[None, None, :]


def softmax_nll(
    weights: Weights,
    bias: Bias,
    hidden: Outputs,
    targets: Tokens,
    compute: ComputeConfig = ComputeConfig(),
) -> TokenNLL:
    """Negative log-likelihood of each target token, in nats; nan if outside the vocabulary.

    Args:
      weights: of the softmax layer.
      bias: of the softmax layer.
      hidden: the last layer's output, dropout already applied; cast to the weights' dtype.
      targets: the token to predict at each position.
      compute: `precision` of the matrix products; with `softmax_tokens` above 0, the
        logits of at most that many tokens exist at a time, forward or backward, at the
        price of computing them twice.
    """
    flat = hidden.astype(weights.dtype).reshape(-1, hidden.shape[-1])
    ids = targets.reshape(-1)
    ids = jnp.where(ids < 0, bias.shape[0], ids)  # must not count from the end
    weights, bias, flat, ids = varying_alike((weights, bias, flat, ids))
    at_once = compute.softmax_tokens
    if at_once == 0 or at_once >= len(ids):
        nll: jax.Array = _nll(weights, bias, flat, ids, compute.precision)
        return nll.reshape(targets.shape)
    padding = -len(ids) % at_once
    chunks = (
        jnp.pad(flat, ((0, padding), (0, 0))).reshape(-1, at_once, flat.shape[-1]),
        jnp.pad(ids, (0, padding)).reshape(-1, at_once),
    )
    nll: jax.Array = jax.lax.map(
        jax.checkpoint(lambda chunk: _nll(weights, bias, *chunk, compute.precision)), chunks
    )
    return nll.reshape(-1)[: len(ids)].reshape(targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _nll(
    weights: Weights,
    bias: Bias,
    hidden: Float[Array, "tokens hidden"],
    targets: Int[Array, " tokens"],
    precision: Precision,
) -> Float[Array, " tokens"]:
    return _nll_forward(weights, bias, hidden, targets, precision)[0]


def _nll_forward(weights, bias, hidden, targets, precision):
    scores = dot(operand(hidden, precision), operand(weights, precision))
    scores = scores + bias[None, :]
    log_total = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
    nll = (log_total - jnp.take_along_axis(scores, targets[:, None], axis=-1))[:, 0]
    return nll, (weights, hidden, targets, scores, log_total)


def _nll_backward(precision, residuals, cotangent):
    weights, hidden, targets, scores, log_total = residuals
    one_hot = jax.nn.one_hot(targets, scores.shape[-1], dtype=scores.dtype)
    d_scores = (jnp.exp(scores - log_total) - one_hot) * cotangent[:, None]
    d_scores = operand(d_scores, precision)
    d_weights = weight_gradient(operand(hidden, precision), d_scores)
    d_bias = d_scores.astype(scores.dtype).sum(axis=0)
    d_hidden = dot(d_scores, operand(weights, precision), contract=1)
    return d_weights, d_bias, d_hidden, None


_nll.defvjp(_nll_forward, _nll_backward)
