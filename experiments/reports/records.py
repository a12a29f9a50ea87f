"""Records of runs: which model, which seeds, which results."""

import contextlib
import dataclasses
import functools
import operator
import os
import statistics
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from experiments.training.history import read_lines
from experiments.training.identity import canonical_config
from experiments.training.run_folder import Workdir
from zaremba_jax.config import Config, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_folder import is_model_folder
from zaremba_jax.json_text import read_json_object
from zaremba_jax.presets import PRESETS, from_dict

_OF_A_MIXTURE = [f"{text}_{x}" for text in ("valid", "test") for x in ("perplexity", "spread")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A run of one model, or of members with consecutive seeds."""

    name: str = ""  # that of its folder
    config: Config
    summary: dict[str, Any]  # what the program reported at the end; empty before that
    history: list[dict[str, Any]]  # one record per epoch
    more: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings besides `config`

    @functools.cached_property
    def model(self) -> Config:
        """The configuration as reduced by `canonical_config`."""
        return canonical_config(self.config)

    @property
    def seeds(self) -> set[int]:
        """The seeds of all models, finished or not."""
        if not self.summary:
            return {self.config.seed + index for index in range(self.more.get("members", 1))}
        return {member["seed"] for member in self._members}

    @property
    def perplexities(self) -> dict[int, tuple[float, float]]:
        """Validation and test perplexity by seed, for the models that did not diverge."""
        return {
            member["seed"]: (member["valid_perplexity"], member["test_perplexity"])
            for member in self._members
            if not member.get("excluded")
        }

    @property
    def _members(self) -> list[dict[str, Any]]:
        return self.summary.get("members", [self.summary]) if self.summary else []

    @property
    def curves(self) -> list[list[float]]:
        """Validation estimates over the epochs, one list per model that did not diverge."""
        return self._curves("valid_perplexity_estimate", "valid_perplexity_estimates")

    @property
    def training_curves(self) -> list[list[float]]:
        """Training perplexities over the epochs, as for `curves`."""
        return self._curves("train_perplexity", "train_perplexities")

    def _curves(self, name: str, of_members: str) -> list[list[float]]:
        if "members" not in self.summary:
            return [[line[name] for line in self.history]]
        return [
            [line[of_members][index] for line in self.history]
            for index, member in enumerate(self.summary["members"])
            if not member.get("excluded")
        ]

    @property
    def estimate(self) -> float:
        """The validation estimate of what a run with an epoch would end with, if it ended now.

        Of many models, the mean over those that did not diverge.
        """
        choose = min if self.config.train.keep == "best" else operator.itemgetter(-1)
        one, of_members = "valid_perplexity_estimate", "valid_perplexity_estimates"
        epochs = [line.get(of_members, [line[one]]) for line in self.history]
        curves = zip(*epochs, strict=True)
        return statistics.mean(choose(curve) for curve in curves if curve[-1] is not None)

    def check(self) -> None:
        """Reads everything that is used of a record, so that what it lacks shows immediately.

        Raises:
          KeyError, TypeError, AttributeError, ValueError: something is missing, or of another type.
        """
        _ = self.seeds
        if self.summary:
            _ = self.perplexities
            if not isinstance(device := self.summary["device"], str):
                raise TypeError(f"device is {device!r}")
        for line in self.history:
            _ = [float(line[name]) for name in ("train_perplexity", "words_per_second", "seconds")]
        # Of many models, earlier versions did not tell; they have no `--patience`.
        epochs = self.summary.get("epochs", self.config.train.epochs)
        lacking = epochs - len(self.history)
        if self.perplexities and lacking > 0:  # curves could not be drawn together
            raise ValueError(f"its metrics lack {lacking} of {epochs} epochs")
        _ = self.curves, self.training_curves, self.history and self.estimate
        for mixture in self.summary.get("mixtures", ()):
            _ = [mixture[name] for name in ("members", "subsets", *_OF_A_MIXTURE)]


def read_records(folder: Path) -> list[Record]:
    """Every finished run in a folder, in order of name."""
    paths = [path.parent for path in sorted(folder.glob("*/summary.json"))]
    return [read_record(Workdir(path)) for path in paths]


@contextlib.contextmanager
def reading(workdir: Workdir) -> Iterator[None]:
    """Tells in one line what is wrong with a folder whose record cannot be read in the block.

    Raises:
      InputError: it holds no run, or the record is damaged.
    """
    if is_model_folder(workdir.path):
        raise InputError(f"{workdir.path}: holds an exported model, not a run; leave it out")
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        refused = isinstance(error, PermissionError)
        if refused or not os.path.exists(workdir.config):  # `Path.exists` may raise it again
            why = " that this user may read" if refused else ""
            raise InputError(
                f"{workdir.path}: holds no run{why}; name the --workdir of one"
            ) from None
        raise InputError(
            f"{workdir.path}: holds a damaged record ({error}); give the command of that run"
            " again, which writes it anew, or leave it out"
        ) from None


def read_record(workdir: Workdir) -> Record:
    """The run in a folder, finished or not.

    Raises:
      InputError: there is none, or it is damaged, or it is a sweep.
    """
    with reading(workdir):
        config, more = workdir.read_config()
    if "vary" in more:
        raise InputError(f"{workdir.path}: holds a sweep, not a run; leave it out")
    with reading(workdir):
        lines = workdir.metrics.read_bytes() if workdir.metrics.exists() else b""
        finished = workdir.summary.exists()
        record = Record(
            name=workdir.path.name,
            config=config,
            summary=read_json_object(workdir.summary) if finished else {},
            history=read_lines(lines),
            more=more,
        )
        record.check()
    return record


def records_of(config: Config, records: list[Record]) -> list[Record]:
    """The records of a configuration's model, whatever its seed."""
    model = canonical_config(config)
    return [record for record in records if record.model == model]


def by_seed(records: list[Record]) -> dict[int, tuple[float, float]]:
    """Validation and test perplexity by seed, of models that differ only in their seed."""
    return {seed: pair for record in records for seed, pair in record.perplexities.items()}


def model_name(config: Config) -> str:
    """The preset's name, with every setting that makes it a different model."""
    return "-".join((config.name, *_changes(config)))


def title_of(summary: dict[str, Any]) -> str:
    """The text of a summary, and its model: the preset, and what all its models have changed."""
    told = {"corpus", *(summary["settings"][0]["setting"] if "settings" in summary else ())}
    of_one = summary["config"] is not None
    changes = _changes(from_dict(summary["config"]), besides=told) if of_one else []
    return ", ".join((summary["corpus"], summary["name"], *changes))


def _changes(config: Config, besides: Container[str] = ()) -> list[str]:
    preset, settings = to_dict(PRESETS[config.name]), to_dict(canonical_config(config))
    return [
        f"{name}={value}"
        for name, value in settings.items()
        if value != preset[name] and name not in besides
    ]
