"""The whole training state to disk and back, exact to the bit."""

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zaremba_jax.array_types import TrainState

KEPT = 2  # the newest, and one to fall back to


class DamagedCheckpointError(ValueError):
    """There are checkpoints, and none of them can be read."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back; `damaged` names the newer ones, which could not be read."""

    state: TrainState
    record: dict[str, Any]
    damaged: tuple[str, ...]


def save(directory: str | Path, state: TrainState, record: dict[str, Any]) -> None:
    """Writes a checkpoint, all of it or nothing, and removes all but the newest two.

    Args:
      directory: where the checkpoints of the run lie; made where it is missing.
      state: where the run stands; the checkpoint is named after `state.step`.
      record: what belongs to the run beside the state, as JSON.
    """
    stored = _storable(state)
    with _manager(directory) as manager:
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(stored),
                record=ocp.args.JsonSave({"record": record, "checksum": _checksum(stored, record)}),
            ),
            force=True,
        )


def restore(
    directory: str | Path, like: TrainState, check: Callable[[dict[str, Any]], None]
) -> Restored | None:
    """Reads the newest checkpoint that is whole, and removes the damaged ones after it.

    Args:
      directory: where the checkpoints of the run lie.
      like: a state of the same shapes; its values do not matter.
      check: gets each record before its state is read, and raises where the
        checkpoint belongs to another run; what it raises goes through.

    Returns:
      The checkpoint, or None where there is none.

    Raises:
      DamagedCheckpointError: there are checkpoints, and none is whole.
    """
    if not Path(directory).is_dir():
        return None
    damaged = []
    with _manager(directory) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            found = _read_whole(manager, step, like, check)
            if found:
                for damaged_step in damaged:  # so that the run can save it again
                    manager.delete(damaged_step)
                paths = tuple(str(Path(directory) / str(step)) for step in damaged)
                return Restored(*found, damaged=paths)
            damaged.append(step)
    if damaged:
        raise DamagedCheckpointError(
            f"{directory}: every checkpoint is damaged; remove the directory to start anew"
        )
    return None


def _read_whole(
    manager: ocp.CheckpointManager,
    step: int,
    like: TrainState,
    check: Callable[[dict[str, Any]], None],
) -> tuple[TrainState, dict[str, Any]] | None:
    """State and record of one checkpoint, or None where it is damaged."""
    stored = _read(manager, step, "record", ocp.args.JsonRestore())
    if stored is None or stored.keys() != {"record", "checksum"}:
        return None
    check(stored["record"])
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
    state = _read(manager, step, "state", ocp.args.StandardRestore(shapes))
    if state is None or _checksum(state, stored["record"]) != stored["checksum"]:
        return None
    key = jax.random.wrap_key_data(state.key)
    return dataclasses.replace(state, key=key), stored["record"]


def _read(manager: ocp.CheckpointManager, step: int, item: str, args: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception:  # what a damaged file raises depends on where the damage is
        return None


def _manager(directory: str | Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _storable(state: TrainState) -> TrainState:
    """The state with its key as plain numbers."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _checksum(state: TrainState, record: dict[str, Any]) -> int:
    checksum = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum
