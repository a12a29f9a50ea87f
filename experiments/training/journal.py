"""What the host writes down of a run; the state of its models is on the device."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.training.history import Extent, Records, line_of


@dataclasses.dataclass
class Journal:
    """The figures of a run so far; a checkpoint keeps them beside the state.

    Where the run stands is not among them: `TrainState.step` alone counts the windows.
    """

    epoch_nll: list[float]  # of each model: sum of this epoch's windows' mean nats per token
    epoch_seconds: float = 0.0  # spent training in this epoch
    seconds: float = 0.0  # spent training and evaluating since the run first began
    history: Records = dataclasses.field(default_factory=list)  # one per epoch
    # Of the process that trained last: `provenance`, `environment` and `peak_memory`.
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Why a model diverged, by its index.
    excluded: dict[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._extent = Extent()
        self._estimates: list[list[float]] = [[] for _ in self.epoch_nll]
        self._best = [math.inf] * len(self.epoch_nll)
        self._improved = [False] * len(self.epoch_nll)  # by the last estimate
        for record in self.history:
            self._count(record)

    @classmethod
    def read(cls, record: Mapping[str, Any], history: Records) -> "Journal":
        """The journal in a checkpoint's record; in early ones, one model's figures are no list."""
        nll = record["epoch_nll"]
        return cls(
            epoch_nll=nll if isinstance(nll, list) else [nll],
            epoch_seconds=record["epoch_seconds"],
            seconds=record["seconds"],
            history=history,
            provenance=record.get("provenance", {}),  # older ones do not tell
            # JSON makes a string of an index.
            excluded={int(index): why for index, why in record.get("excluded", {}).items()},
        )

    def record(self) -> dict[str, Any]:
        """What `read` takes, with the extent of the history in its place."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"history": dataclasses.asdict(self._extent)}

    @property
    def live(self) -> list[int]:
        """The models that have not diverged."""
        return [index for index in range(len(self.epoch_nll)) if index not in self.excluded]

    def exclude(self, index: int, reason: str) -> None:
        """Leaves a model out from now on."""
        self.excluded[index] = reason
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
        return self._estimates[index]

    def has_improved(self, index: int) -> bool:
        """Whether a model's last estimate is better than all before; not if it diverged."""
        return self._improved[index]

    def end_epoch(self, metrics: Mapping[str, Any], evaluation_seconds: float) -> None:
        """Adds an epoch's record to the history, with the time since the run began."""
        self.seconds += evaluation_seconds
        self.history.append({**metrics, "seconds": self.seconds})
        self._count(self.history[-1])
        self.epoch_nll, self.epoch_seconds = [0.0] * len(self.epoch_nll), 0.0

    def _count(self, record: Mapping[str, Any]) -> None:
        """Keeps up with a new record, so that nobody goes through all of them at each epoch."""
        self._extent = self._extent.with_lines(line_of(record))
        estimate = record["valid_perplexity_estimate"]
        for index, value in enumerate(record.get("valid_perplexity_estimates", [estimate])):
            self._improved[index] = value is not None and value < self._best[index]
            if value is not None:
                self._estimates[index].append(value)
                self._best[index] = min(value, self._best[index])
