"""The time of whole training steps, contenders and bare matrix products in one run.

The time of a step's matrix products at the best rate is the least that it can take.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.contenders import Contender
from experiments.training.turns import Turn, take_turns
from zaremba_jax.cells import CELLS
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.ops.products import dot, operand, weight_gradient

_REPEATS = 4
_SQUARE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # large enough for the full rate


class Quartiles(NamedTuple):
    """A median and the spread around it."""

    lower: float
    median: float
    upper: float


class Product(NamedTuple):
    """A repeated matrix product to time: its operations in all, and what runs them."""

    flops: float
    run: Turn


def quartiles(values: np.ndarray) -> Quartiles:
    """The 25th, 50th and 75th percentile."""
    return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def compare_step_times(
    contenders: Sequence[Contender], windows: int, rounds: int
) -> dict[str, Any]:
    """Times all contenders in one run.

    Returns:
      `peak_gflops`, the best rate of a matrix product by precision, and `contenders`, one
      record each with quartiles of `step_ms`, `tokens_per_second`, `ratio` (its time per
      token over the first contender's) and `of_floor` (the least time of a step, that of its
      products at the best rate, over the step's).
    """
    configs = {contender.config.compute.precision: contender.config for contender in contenders}
    products = {precision: largest_products(config) for precision, config in configs.items()}
    turns = {contender.name: contender.build(windows) for contender in contenders}
    for precision, by_name in products.items():
        turns |= {f"{precision} {name}": product.run for name, product in by_name.items()}
    seconds = take_turns(turns, rounds)
    best = {
        precision: max(
            product.flops / float(np.median(seconds[f"{precision} {name}"]))
            for name, product in by_name.items()
        )
        for precision, by_name in products.items()
    }
    steps = {contender: seconds[contender.name] / windows for contender in contenders}
    tokens = {contender: step / contender.tokens for contender, step in steps.items()}
    return {
        "peak_gflops": {precision: rate / 1e9 for precision, rate in best.items()},
        "contenders": [
            {
                "contender": contender.name,
                "members": contender.members,
                "members_at_once": contender.at_once,
                "step_ms": quartiles(1e3 * step),
                "tokens_per_second": quartiles(1 / tokens[contender]),
                "ratio": quartiles(tokens[contender] / tokens[contenders[0]]),
                "of_floor": quartiles(
                    contender.members
                    * step_flops(contender.config)
                    / best[contender.config.compute.precision]
                    / step
                ),
            }
            for contender, step in steps.items()
        ],
    }


def step_flops(config: Config) -> float:
    """Operations of one training step's matrix products, forward and backward."""
    model, train = config.model, config.train
    sizes, gates = model.layer_sizes, len(CELLS[model.cell].gates)
    below = (model.features, *sizes[:-1])
    layers = sum(gates * b * (a + b) for a, b in zip(below, sizes, strict=True))
    weights = layers + sizes[-1] * PTB_VOCABULARY_SIZE
    return 6.0 * weights * train.batch_size * train.unroll


def largest_products(config: Config) -> dict[str, Product]:
    """The largest products of a step, and a square one that is in no step, by name.

    The largest are the softmax layer's: its outputs, and the gradient of its weights.
    """
    precision, size = config.compute.precision, config.model.layer_sizes[-1]
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


def print_step_times(console: Console, results: dict[str, Any]) -> None:
    """Prints one row per contender."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("contender")
    for column in ("step ms", "tokens/s", "ratio", "quartiles", "of floor", "first s", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in results["contenders"]:
        ratio, step = record["ratio"], record["step_ms"].median
        table.add_row(
            record["contender"],
            f"{step:.2f}" if step < 10 else f"{step:.1f}",
            f"{record['tokens_per_second'].median:,.0f}",
            f"{ratio.median:.2f}",
            f"{ratio.lower:.2f}-{ratio.upper:.2f}",
            f"{record['of_floor'].median:.0%}",
            f"{record['first_seconds']:.1f}",
            f"{record['peak_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    rates = ", ".join(f"{rate:,.0f} in {p}" for p, rate in results["peak_gflops"].items())
    console.print(
        f"{results['config']['name']} on {results['device']}, medians of {results['rounds']}"
        " rounds. Step: of all members. Ratio: time per token over that of our single model."
        " Of floor: the time of the step's matrix products at this run's best rate, over the"
        f" step's; best rates in GFLOP/s: {rates}. First: seconds until the first turn ends. MB:"
        " peak memory."
    )
