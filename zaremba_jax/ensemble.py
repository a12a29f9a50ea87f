"""Models averaged: the mixture of their probabilities (Zaremba et al. 2014, section 4.1).

The paper's best results average the probabilities of models that differ only in their seed.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity
from zaremba_jax.limits import whole_number

MemberNLL = Float[np.ndarray, "members predictions"]
_DRAWS = 100  # of subsets, if there are more


def mixture_nll(
    nll: Float[ArrayLike, "members predictions"] | Sequence[Float[ArrayLike, " predictions"]],
) -> Float[np.ndarray, " predictions"]:
    """Nats of each token under the mean of the members' probabilities (section 4.1).

    -log mean exp(-nll) in float64; infinite where every member's are.

    >>> mixture_nll(-np.log([[0.5, 0.1], [0.1, 0.3]])).round(4)  # -log 0.3, -log 0.2
    array([1.204 , 1.6094])

    Raises:
      InputError: there is no axis of members.
    """
    nats = np.asarray(nll, np.float64)
    if nats.ndim < 2:
        raise InputError(
            f"nats of shape {nats.shape}: give one row for each member, as [nll] for one model"
        )
    return math.log(len(nats)) - np.logaddexp.reduce(-nats, axis=0)


def mixture_log_probs(
    scores: Float[Array, "models samples vocabulary"],
) -> Float[Array, "samples vocabulary"]:
    """Logarithm of the mean of the models' probabilities, from their logits."""
    log_probs = jax.nn.log_softmax(scores)
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(scores))


def subsets(members: int, size: int) -> list[tuple[int, ...]]:
    """Distinct subsets of `size` members: all, or 100 drawn at random if there are more.

    >>> subsets(3, 2)
    [(0, 1), (0, 2), (1, 2)]

    Raises:
      InputError: `size` is not a whole number from 1 to `members`.
    """
    size = whole_number("size", size)
    if not 0 < size <= members:
        raise InputError(f"a mixture of {size}: there are {members} members; take 1 to {members}")
    if math.comb(members, size) <= _DRAWS:
        return list(itertools.combinations(range(members), size))
    rng, drawn = np.random.default_rng(size), set()
    while len(drawn) < _DRAWS:
        drawn.add(tuple(sorted(rng.choice(members, size, replace=False).tolist())))
    return sorted(drawn)


def mixture_perplexities(nll: MemberNLL, size: int) -> Float[np.ndarray, " subsets"]:
    """Perplexity of the mixture of each of the `subsets` of `size` members."""
    chosen = subsets(len(nll), size)
    return np.array([perplexity(mixture_nll(nll[list(subset)])) for subset in chosen])
