"""The matrix products of a training step, whose time at the best rate is the least it can take."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.turns import Turn
from zaremba_jax.cells import CELLS
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.ops.products import dot, operand, weight_gradient

_REPEATS = 4
_SQUARE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # large enough for the full rate


class Product(NamedTuple):
    """A repeated matrix product to time: its operations in all, and what runs them."""

    flops: float
    run: Turn


def step_flops(config: Config) -> float:
    """Operations of one training step's matrix products, forward and backward."""
    model, train = config.model, config.train
    hidden, gates = model.hidden_size, len(CELLS[model.cell].gates)
    inputs = model.features + (model.layers - 1) * hidden  # of all layers
    weights = gates * hidden * (inputs + model.layers * hidden) + hidden * PTB_VOCABULARY_SIZE
    return 6.0 * weights * train.batch_size * train.unroll


def largest_products(config: Config) -> dict[str, Product]:
    """The largest products of a step, and a square one that is in no step, by name.

    The largest are the softmax layer's: its outputs, and the gradient of its weights.
    """
    precision, size = config.compute.precision, config.model.hidden_size
    tokens = config.train.batch_size * config.train.unroll
    square = _SQUARE[jax.default_backend()]

    def product(
        function: Callable[[jax.Array, jax.Array], jax.Array],
        flops: float,
        *shapes: tuple[int, int],
    ) -> Product:
        factors = [operand(jnp.ones(shape), precision) for shape in shapes]
        compiled = jax.jit(function)

        def run() -> None:
            jax.block_until_ready([compiled(*factors) for _ in range(_REPEATS)])

        return Product(_REPEATS * flops, run)

    softmax = 2.0 * tokens * size * PTB_VOCABULARY_SIZE
    outputs = product(dot, softmax, (tokens, size), (size, PTB_VOCABULARY_SIZE))
    gradient = product(weight_gradient, softmax, (tokens, size), (tokens, PTB_VOCABULARY_SIZE))
    largest = product(dot, 2.0 * square**3, (square, square), (square, square))
    return {"outputs": outputs, "gradient": gradient, "square": largest}
