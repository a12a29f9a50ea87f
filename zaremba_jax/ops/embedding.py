"""The embedding: look-up of rows by token, with a gradient that is bit-identical in every run."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import Tokens
from zaremba_jax.ops.varying import varying_alike

Rows = Float[Array, "words features"]


def embedding_lookup(embedding: Rows, tokens: Tokens) -> Float[Array, "time batch features"]:
    """The row of each token. Reverse-mode differentiation only.

    The gradient of a row is a sum over all positions of its word. On NVIDIA GPUs the order of
    scattered additions varies from run to run, so there the sums are a matrix product.
    """
    return _lookup(*varying_alike((embedding, tokens)))


@jax.custom_vjp
def _lookup(embedding, tokens):
    return embedding[tokens]


def _forward(embedding, tokens):
    return embedding[tokens], (embedding, tokens)


def _backward(residuals, cotangent):
    embedding, tokens = residuals
    flat = tokens.reshape(-1), cotangent.reshape(-1, cotangent.shape[-1])

    def add(ids, cotangents):
        return jnp.zeros_like(embedding).at[ids].add(cotangents)

    def multiply(ids, cotangents):
        return segment_sum_by_matmul(ids, cotangents, len(embedding))

    return jax.lax.platform_dependent(*flat, cuda=multiply, default=add), None


_lookup.defvjp(_forward, _backward)


def segment_sum_by_matmul(
    ids: Int[Array, " tokens"], cotangents: Float[Array, "tokens features"], words: int
) -> Rows:
    """Row i of the `words` rows is the sum of the `cotangents` whose id is i."""
    if words > len(ids):  # the product covers only the words that occur
        unique_ids, ids = jnp.unique(ids, size=len(ids), fill_value=words, return_inverse=True)
        sums = segment_sum_by_matmul(ids, cotangents, len(ids))
        return jnp.zeros((words, sums.shape[1]), sums.dtype).at[unique_ids].set(sums, mode="drop")
    one_hot = jax.nn.one_hot(ids, words, axis=0, dtype=cotangents.dtype)
    return jnp.matmul(one_hot, cotangents, precision="highest")  # the default may round its inputs
