"""Saves a run in its folder now and then, and takes it up again where it stood.

On other devices, the saved state is read to the host and split again.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.training.history import read_history, sync_history
from experiments.training.identity import checkpoint_settings, differing_settings
from experiments.training.journal import Journal
from experiments.training.quiet_threads import quiet_threads
from experiments.training.run import Run, is_finished, position
from experiments.training.run_folder import Workdir
from zaremba_jax import checkpoint
from zaremba_jax.array_types import TrainState
from zaremba_jax.config import Config, override, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.train import init_train_state

# An epoch's end is saved if the last save is longer ago than this many times what it took.
_SAVE_TIME_MULTIPLE = 20
# `checkpoint.restore`, or one that does as it does.
Restore = Callable[[Path, Callable[[dict[str, Any]], Any]], checkpoint.Restored | None]


class Saves:
    """When a run is saved, and the saving."""

    def __init__(self, run: Run, workdir: Workdir, minutes: float):
        """`minutes` is the longest time between two saves within an epoch."""
        self._run, self._workdir, self._longest = run, workdir, 60 * minutes
        self._last, self._took = time.monotonic(), 0.0

    def is_due(self) -> bool:
        """Whether the run, as it stands, should be saved."""
        since = time.monotonic() - self._last
        if position(self._run)[1] > 0:
            return since > self._longest
        return is_finished(self._run) or since > min(
            self._longest, _SAVE_TIME_MULTIPLE * self._took
        )

    def save(self) -> None:
        """Writes a checkpoint."""
        run, started = self._run, time.monotonic()
        record = {
            "configs": [checkpoint_settings(to_dict(config)) for config in run.all_configs],
            "corpus_sha256": run.corpus.fingerprint,
            "vocabulary": dataclasses.asdict(run.corpus.vocabulary),
            "layout": run.layout,
            "precision_of_state": _precision(),
            "threefry_partitionable": _threefry_partitionable(),
            **run.journal.record(),
        }
        sync_history(self._workdir)
        with quiet_threads():
            checkpoint.save(self._workdir.checkpoints, run.step, run.state, record)
        self._last = time.monotonic()
        self._took = self._last - started


def resume(
    run: Run, workdir: Workdir, console: Console, restore: Restore = checkpoint.restore
) -> None:
    """Puts a new run where the newest intact checkpoint in its folder stands, if there is one.

    Raises:
      InputError: the checkpoint is of another configuration or text, or of more epochs than
        requested; every checkpoint is damaged; or the run is finished and has none.
    """

    def make_template(record: dict[str, Any]) -> Any:
        _require_checkpoint_of(run, record, workdir)
        if record["layout"] == run.layout:
            return run.state
        return host_buffers(run.config, len(run.corpus.vocabulary), record["layout"])

    with quiet_threads():
        restored = restore(workdir.checkpoints, make_template)
    if restored is None:
        if workdir.summary.exists():
            raise InputError(
                f"{workdir.path}: holds a finished run whose checkpoints are gone; remove its"
                " summary.json to train it again, or leave it as it is"
            )
        return
    for path in restored.damaged:
        console.print(f"{path} was damaged: continuing from the one before", soft_wrap=True)
    same_layout = restored.record["layout"] == run.layout
    run.state = restored.state if same_layout else run.cut(restored.state)
    history = read_history(workdir, restored.record["history"])
    run.journal = Journal.read(restored.record, history)
    epoch, window = position(run)
    if (epoch, window) > (run.config.train.epochs, 0):
        raise InputError(
            f"{workdir.path}: has trained for {epoch} epochs and {window} windows; give"
            f" --epochs={epoch + (window > 0)} or more, or name another --workdir"
        )
    console.print(f"resuming {workdir.path} after epoch {epoch}, window {window}", soft_wrap=True)


def _require_checkpoint_of(run: Run, record: dict[str, Any], workdir: Workdir) -> None:
    """Refuses a checkpoint whose record is of another configuration or text."""
    saved, wanted = (
        [checkpoint_settings(settings) for settings in of_models]
        for of_models in (record["configs"], map(to_dict, run.all_configs))
    )
    same_program = ("chunks" in record["layout"]) == ("chunks" in run.layout)
    same_models = len(saved) == len(wanted) and not any(map(differing_settings, saved, wanted))
    if not (same_program and same_models):
        raise InputError(
            f"{workdir.path}: has checkpoints of another configuration; give the flags of that"
            " run, or name another --workdir"
        )
    precision = record.get("precision_of_state", _precision())  # older ones do not tell
    if precision != _precision():
        raise InputError(
            f"{workdir.path}: holds a run in {precision}, which would go on in {_precision()}; set"
            " JAX_ENABLE_X64 as it was for that run, or name another --workdir"
        )
    partitionable = record.get("threefry_partitionable", True)
    if partitionable != _threefry_partitionable():
        raise InputError(
            f"{workdir.path}: holds a run that draws other random numbers; set"
            f" JAX_THREEFRY_PARTITIONABLE={int(partitionable)}, or name another --workdir"
        )
    if record["corpus_sha256"] != run.corpus.fingerprint:
        raise InputError(
            f"{workdir.path}: holds a run on another text; name another --workdir, or give"
            " the text of that run"
        )


def host_buffers(config: Config, vocabulary_size: int, layout: Mapping[str, Any]) -> Any:
    """Host buffers for the state in a checkpoint, its key as raw data.

    Args:
      config: of the run; its models have states of the same shapes.
      vocabulary_size: the number of different tokens.
      layout: `Run.layout` when it was saved, as the checkpoint's record has it.
    """
    config = override(config, batch_size=layout["streams"])  # padding included

    def start() -> TrainState:
        state = init_train_state(config, vocabulary_size)
        return dataclasses.replace(state, key=jax.random.key_data(state.key))

    shapes = jax.eval_shape(start)

    def room(*members: int) -> Any:
        return jax.tree.map(lambda x: np.empty((*members, *x.shape), x.dtype), shapes)

    return tuple(map(room, layout["chunks"])) if "chunks" in layout else room()


def cut(stored: Any, like: TrainState, batch: int) -> TrainState:
    """Puts a stored state on the devices, bit for bit.

    Args:
      stored: the buffers of `host_buffers`, filled, with as many members as `like`.
      like: gives the shardings and the shapes.
      batch: streams of the batch; in both states, any surplus is padding.
    """
    axis = like.step.ndim

    def streams(x: np.ndarray, y: jax.Array) -> np.ndarray:
        kept = x[:batch] if axis == 0 else x[:, :batch]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, y.shape[axis] - batch)
        return np.pad(kept, padding)

    def put(x: np.ndarray, y: jax.Array) -> jax.Array:
        return jax.make_array_from_callback(x.shape, y.sharding, lambda part: x[part])

    rnn_state = jax.tree.map(streams, stored.rnn_state, like.rnn_state)
    state = jax.tree.map(put, dataclasses.replace(stored, rnn_state=rnn_state), like)
    return dataclasses.replace(state, key=checkpoint.as_key(state.key, like.key))


def _precision() -> str:
    """The type of the parameters of a new run, by JAX's own settings."""
    return jax.dtypes.canonicalize_dtype(float).name


def _threefry_partitionable() -> bool:
    """Which of two streams of random numbers JAX draws from a key, by its own settings."""
    return jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
