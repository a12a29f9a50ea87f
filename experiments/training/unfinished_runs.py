"""The models of runs that are stopped, or still train, from their checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.training.history import read_history
from experiments.training.journal import Journal
from experiments.training.quiet_threads import quiet_threads
from experiments.training.resumption import host_buffers
from experiments.training.run_folder import Workdir
from zaremba_jax.array_types import TrainState
from zaremba_jax.checkpoint import Restored, restore
from zaremba_jax.config import Config
from zaremba_jax.data.vocabulary_files import vocabulary_from_dict
from zaremba_jax.errors import InputError
from zaremba_jax.estimates import best_epoch
from zaremba_jax.interop.model_file import assemble, named_arrays
from zaremba_jax.model import Model
from zaremba_jax.presets import from_dict

_MOST_TRIES = 10


def is_unfinished(workdir: Workdir) -> bool:
    """Whether the folder holds a run with a checkpoint that has not reported its results.

    A model there is what the run had before it was given more epochs.
    """
    return (
        workdir.config.exists()
        and not workdir.summary.exists()
        and bool(_steps(workdir.checkpoints))
    )


class Unfinished(NamedTuple):
    """The models that a run would end with if it ended at its newest checkpoint."""

    models: list[Model]  # those that did not diverge
    described: str  # a line that says of which epoch they are
    # The first one's perplexities, by the text's name; none of parameters that are not estimated.
    perplexities: dict[str, float]


def unfinished_models(workdir: Workdir) -> Unfinished:
    """The models of the newest checkpoint of a run, which may go on meanwhile.

    Raises:
      InputError: the run is a sweep, which has no model before its end, has completed no
        checkpoint, or only one of an earlier version, or its files are damaged.
    """
    config, more = _read_config(workdir)
    if "vary" in more:
        raise InputError(
            f"{workdir.path}: holds a sweep, whose best setting is known at its end; give its"
            " command again to finish it"
        )
    with quiet_threads():
        restored = restore_while_written(
            workdir.checkpoints, lambda record: _buffers(config, record, workdir)
        )
    if restored is None:
        raise InputError(
            f"{workdir.path}: holds a run that has saved nothing yet; wait for its first"
            " checkpoint, or give its command again"
        )
    record = restored.record
    journal = Journal.read(record, read_history(workdir, record["history"]))
    # Before the first epoch's end, no parameters are the best.
    chosen = [x.result if journal.history else x.model for x in _as_chunks(restored.state)]
    params = jax.tree.map(lambda *chunks: np.concatenate(chunks), *chosen)
    vocabulary = vocabulary_from_dict(record["vocabulary"])
    models = [
        assemble(
            workdir.path,
            named_arrays(jax.tree.map(lambda x, row=row: x[row], params)),
            _config_of(config, record["configs"][row]),
            vocabulary,
        )
        for row in journal.live
    ]
    described = f"{workdir.path}: is not finished; {_described(config, journal)}"
    return Unfinished(models, described, _perplexities(config, journal))


def _read_config(workdir: Workdir) -> tuple[Config, dict[str, Any]]:
    try:
        return workdir.read_config()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{workdir.config}: is damaged ({error}); give the command of its run again, or name"
            " another folder"
        ) from None


def _config_of(config: Config, settings: dict[str, Any]) -> Config:
    """A model's configuration, which checkpoints record without what says when a run ends."""
    train = config.train
    return from_dict({**settings, "epochs": train.epochs, "patience": train.patience})


def _buffers(config: Config, record: dict[str, Any], workdir: Workdir) -> Any:
    """Host buffers for the state of a checkpoint, by its record."""
    if "vocabulary" not in record:
        raise InputError(
            f"{workdir.path}: is not finished, and an earlier version saved it, without its"
            " vocabulary; give its command again to finish it"
        )
    return host_buffers(config, len(record["vocabulary"]["words"]), record["layout"])


def _as_chunks(state: Any) -> Sequence[TrainState]:
    """Stored states with a leading axis of models, whether of one model or of chunks of many."""
    if isinstance(state, TrainState):
        return [jax.tree.map(lambda x: x[None], state)]
    return state


def _described(config: Config, journal: Journal) -> str:
    trained, live = len(journal.history), journal.live
    models = "its model" if len(live) == 1 else f"its {len(live)} models"
    after = f"after {trained} of {config.train.epochs} epochs"
    if any(journal.epoch_nll):
        after += " and a part of the next"
    if config.train.keep == "last" or not trained:
        return f"{models} {after}"
    epochs = ", ".join(str(best_epoch(journal.estimates(index))) for index in live)
    return f"{models} of epoch{'s' * (len(live) > 1)} {epochs}, the best {after}"


def _perplexities(config: Config, journal: Journal) -> dict[str, float]:
    estimates = journal.estimates(journal.live[0])
    keeps_best = config.train.keep == "best"
    if not estimates or (not keeps_best and any(journal.epoch_nll)):
        return {}
    epoch = best_epoch(estimates) if keeps_best else len(estimates)
    name = f"an estimate after epoch {epoch} of {config.train.epochs}; the run is not finished"
    return {f"validation ({name})": estimates[epoch - 1]}


def _steps(checkpoints: Path) -> list[str]:
    return sorted(x.name for x in checkpoints.glob("*") if x.name.isdecimal())


def restore_while_written(
    checkpoints: Path, make_template: Callable[[dict[str, Any]], Any]
) -> Restored | None:
    """As `restore`; again if the run removed a checkpoint meanwhile, which then looks damaged."""
    for _ in range(_MOST_TRIES - 1):
        before = _steps(checkpoints)
        try:
            restored = restore(checkpoints, make_template)
        except Exception:
            if _steps(checkpoints) == before:
                raise
        else:
            if (restored is not None and not restored.damaged) or _steps(checkpoints) == before:
                return restored
    return restore(checkpoints, make_template)
