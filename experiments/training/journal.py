"""What the host writes down of a run; the state of its models is on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass
class Journal:
    """The figures of a run so far; a checkpoint keeps them beside the state.

    Where the run stands is not among them: `TrainState.step` alone counts the windows.
    """

    epoch_nll: list[float]  # of each model: sum of this epoch's windows' mean nats per token
    epoch_seconds: float = 0.0  # spent training in this epoch
    seconds: float = 0.0  # spent training and evaluating since the run first began
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # one per epoch
    # Why a model diverged, by its index, which JSON makes a string.
    excluded: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Journal":
        """The journal in a checkpoint's record; the first version's of one model had no lists."""
        nll = record["epoch_nll"]
        return cls(
            epoch_nll=nll if isinstance(nll, list) else [nll],
            epoch_seconds=record["epoch_seconds"],
            seconds=record["seconds"],
            history=record["history"],
            excluded=record.get("excluded", {}),
        )

    def record(self) -> dict[str, Any]:
        """What `read` takes."""
        return dataclasses.asdict(self)

    @property
    def live(self) -> list[int]:
        """The models that have not diverged."""
        return [index for index in range(len(self.epoch_nll)) if str(index) not in self.excluded]

    def exclude(self, index: int, reason: str) -> None:
        """Leaves a model out from now on."""
        self.excluded[str(index)] = reason
        self.epoch_nll[index] = 0.0

    def add_windows(self, nll: Mapping[int, float], seconds: float) -> None:
        """Adds windows that took some seconds: the sum of their nats, by model."""
        for index, total in nll.items():
            self.epoch_nll[index] += total
        self.seconds += seconds
        self.epoch_seconds += seconds

    def train_perplexities(self, windows: int) -> dict[int, float]:
        """The training perplexity of each live model over this epoch's windows."""
        return {index: float(np.exp(self.epoch_nll[index] / windows)) for index in self.live}

    def estimates(self, index: int) -> list[float]:
        """A model's validation perplexity after each epoch, until it diverged."""
        of_epochs = (
            record.get("valid_perplexity_estimates", [record["valid_perplexity_estimate"]])[index]
            for record in self.history
        )
        return [estimate for estimate in of_epochs if estimate is not None]

    def has_improved(self, index: int) -> bool:
        """Whether a model's last estimate is better than all before."""
        *before, last = self.estimates(index)
        return last < min(before, default=float("inf"))

    def end_epoch(self, metrics: Mapping[str, Any], evaluation_seconds: float) -> None:
        """Adds an epoch's record to the history, with the time since the run began."""
        self.seconds += evaluation_seconds
        self.history.append({**metrics, "seconds": self.seconds})
        self.epoch_nll, self.epoch_seconds = [0.0] * len(self.epoch_nll), 0.0
