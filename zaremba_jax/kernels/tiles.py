"""Zeros around a layer's arrays, which make whole tiles of them.

Units that are added stay 0 because their weights are 0, streams because their inputs and states
are 0; and so do all their gradients.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

UNITS_PER_TILE = 128  # of a matrix product on NVIDIA and of an array on a TPU


def pad_units(
    x: Float[Array, "*leading units"], hidden: int
) -> Float[Array, "*leading padded_units"]:
    """Pads each block of `hidden` on the last axis, one per gate, to whole tiles."""
    blocks = x.reshape(*x.shape[:-1], -1, hidden)
    padding = [(0, 0)] * (blocks.ndim - 1) + [(0, -hidden % UNITS_PER_TILE)]
    return jnp.pad(blocks, padding).reshape(*x.shape[:-1], -1)


def pad_rows(
    x: Float[Array, "*leading rows columns"], multiple: int
) -> Float[Array, "*leading padded_rows columns"]:
    """Pads the last axis but one to a multiple of `multiple`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % multiple), (0, 0)])


def pad_recurrent_weights(
    weights: Float[Array, "hidden gates"],
) -> Float[Array, "padded_hidden padded_gates"]:
    """W_h for padded units: the rows for h and the columns of each gate."""
    return pad_rows(pad_units(weights, weights.shape[0]), UNITS_PER_TILE)
