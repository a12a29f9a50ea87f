"""Dropout on the non-recurrent connections: the paper's regularizer."""

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import Activations, DropoutMasks, Key
from zaremba_jax.config import RegularizerConfig


def sample_masks(
    config: RegularizerConfig, shape: tuple[int, int, int], layers: int, *, key: Key
) -> DropoutMasks | None:
    """All dropout masks of one window (the operator D of Zaremba et al. 2014, section 3.2).

    Every unit of every site at every time step is kept independently with
    probability 1 - rate and then scaled by 1 / (1 - rate), so that a mask's
    expectation is 1 and evaluation needs no rescaling.

    Args:
      config: `config.dropout` is the rate.
      shape: (time, batch, features) of a site.
      layers: the number of layers L; there are L + 1 sites.
      key: the window's own key; the same key gives the same masks.

    Returns:
      The masks, or None where the rate is 0.
    """
    if config.dropout == 0:
        return None
    keep = 1 - config.dropout

    def mask(site_key: Key) -> Activations:
        return jnp.where(jax.random.bernoulli(site_key, keep, shape), 1 / keep, 0.0)

    *inputs, output = map(mask, jax.random.split(key, layers + 1))
    return DropoutMasks(inputs=tuple(inputs), output=output)
