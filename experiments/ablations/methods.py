"""The regularizers that the ablation compares, and the rates that it tries for each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

DROPOUT_RATES, PENALTIES = (0.3, 0.5, 0.65), (3e-4, 1e-3, 3e-3)  # candidate rates and penalties


class Method(NamedTuple):
    """A regularizer: its title, and the values of its settings that are tried together."""

    title: str
    grid: Mapping[str, tuple[float, ...]]
    mask_each: str = "step"

    def candidates(self, count: int) -> list[dict[str, float]]:
        """The first `count` candidates; a single empty one if there is nothing to choose."""
        rows = zip(*(values[:count] for values in self.grid.values()), strict=True)
        return [dict(zip(self.grid, row, strict=True)) for row in rows] or [{}]


METHODS = {
    "none": Method("no regularization", {}),
    "l2": Method("L2", {"l2": (1e-3, 3e-3, 1e-2)}),
    "l1": Method("L1", {"l1": PENALTIES}),
    "elastic_net": Method("elastic net", {"l1": PENALTIES, "l2": PENALTIES}),
    "dropconnect": Method("DropConnect", {"dropconnect": DROPOUT_RATES}),
    "ordinary": Method(
        "ordinary dropout", {"dropout": DROPOUT_RATES, "hidden_dropout": DROPOUT_RATES}
    ),
    "variational": Method(
        "variational dropout",
        {"dropout": DROPOUT_RATES, "hidden_dropout": DROPOUT_RATES},
        mask_each="window",
    ),
    "non_recurrent": Method("non-recurrent dropout", {"dropout": DROPOUT_RATES}),
}


def groups(methods: Sequence[str]) -> list[list[str]]:
    """The methods that can share a program: those whose masks change equally often."""
    kinds = ("step", "window")
    split = [
        [name for name, method in METHODS.items() if name in methods and method.mask_each == kind]
        for kind in kinds
    ]
    return [group for group in split if group]


def member_rates(candidates: Sequence[Mapping[str, float]], seeds: int) -> dict[str, jax.Array]:
    """The rates of members side by side, [candidates * seeds] for each setting; 0 where off."""
    used = dict.fromkeys(setting for rates in candidates for setting in rates)
    return {
        setting: jnp.repeat(jnp.array([rates.get(setting, 0.0) for rates in candidates]), seeds)
        for setting in used
    }
