"""The time of whole training steps, contenders and bare matrix products in one run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.benchmarks.contenders import Contender
from experiments.benchmarks.step_products import Product, largest_products, step_flops
from experiments.benchmarks.turns import quartiles, take_turns

Seconds = Float[np.ndarray, " rounds"]


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
    products = {
        (precision, name): product
        for precision, config in configs.items()
        for name, product in largest_products(config).items()
    }
    turns = {contender.name: contender.build(windows) for contender in contenders}
    bare = {" ".join(name): product.run for name, product in products.items()}
    seconds = take_turns(turns | bare, rounds)
    best = _best_rates(products, seconds)
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


def _best_rates(
    products: Mapping[tuple[str, str], Product], seconds: Mapping[str, Seconds]
) -> dict[str, float]:
    """Operations per second of the fastest product in each precision."""
    best: dict[str, float] = {}
    for (precision, name), product in products.items():
        rate = product.flops / float(np.median(seconds[f"{precision} {name}"]))
        best[precision] = max(rate, best.get(precision, 0.0))
    return best
