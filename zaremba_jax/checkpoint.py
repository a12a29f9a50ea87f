"""The whole training state to disk and back, exact to the bit."""

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

# One model's, or those of the chunks of an ensemble.
State = Any
KEPT = 2  # the newest, and one to fall back to
DIGEST = "checksums.json"  # written last: the newest checkpoint without it was cut off


class DamagedCheckpointError(ValueError):
    """There are checkpoints, and none of them can be read."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back; `damaged` names the newer ones, which could not be read."""

    state: State
    record: dict[str, Any]
    damaged: tuple[str, ...]


def save(directory: str | Path, step: int, state: State, record: dict[str, Any]) -> None:
    """Writes a checkpoint, all of it or nothing, and removes all but the newest two.

    Every host of a run takes part and writes what it has, in a directory that all see.

    Args:
      directory: where the checkpoints of the run lie; made where it is missing.
      step: what the checkpoint is named after, higher than those before it.
      state: where the run stands.
      record: what belongs to the run beside the state, as JSON.
    """
    with _manager(directory) as manager:
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_storable(state)), record=ocp.args.JsonSave(record)
            ),
            force=True,
        )
    if jax.process_index() == 0:
        folder = Path(directory, str(step))
        partial = folder / f"{DIGEST}.partial"
        partial.write_text(json.dumps(_checksums(folder)))
        os.replace(partial, folder / DIGEST)
    _wait_for_all("saved")


def restore(
    directory: str | Path, like: State, check: Callable[[dict[str, Any]], None]
) -> Restored | None:
    """Reads the newest checkpoint that is whole, and removes the damaged ones after it.

    Args:
      directory: where the checkpoints of the run lie.
      like: a state of the same shapes; its values do not matter.
      check: gets the record before the state is read, and raises where the
        checkpoint belongs to another run; what it raises goes through.

    Returns:
      The checkpoint, or None where there is none.

    Raises:
      DamagedCheckpointError: there are checkpoints, and none is whole.
    """
    if not Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        steps = sorted(manager.all_steps())
        cut_off = bool(steps) and not Path(directory, str(steps[-1]), DIGEST).exists()
        finished = steps[:-1] if cut_off else steps
        whole = [step for step in finished if _is_whole(Path(directory, str(step)))]
        if finished and not whole:
            raise DamagedCheckpointError(
                f"{directory}: every checkpoint is damaged; remove the directory to start anew"
            )
        newest = max(whole, default=-1)
        found = _read(manager, newest, like, check) if whole else None
        _wait_for_all("read")
        for step in steps:
            if step > newest:  # so that the run can save it again
                manager.delete(step)
    if found is None:
        return None
    damaged = (Path(directory, str(step)) for step in finished if step > newest)
    return Restored(*found, damaged=tuple(map(str, damaged)))


def _read(
    manager: ocp.CheckpointManager,
    step: int,
    like: State,
    check: Callable[[dict[str, Any]], None],
) -> tuple[State, dict[str, Any]]:
    record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    check(record)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
    stored = ocp.args.StandardRestore(shapes)
    state = manager.restore(step, args=ocp.args.Composite(state=stored))["state"]
    # Under jit, so that keys that are spread over hosts stay so.
    wrap = jax.jit(jax.random.wrap_key_data)
    return jax.tree.map(lambda x, y: wrap(x) if _is_key(y) else x, state, like), record


def _checksums(folder: Path) -> dict[str, int]:
    """A checksum of every file below a folder but the digest itself."""
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(DIGEST)
    }


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / DIGEST).read_text()) == _checksums(folder)
    except (OSError, ValueError):
        return False


def _wait_for_all(event: str) -> None:
    """Until every host is as far as this one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


def _manager(directory: str | Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).absolute(), options=options)


def _storable(state: State) -> State:
    """The state with its keys as plain numbers."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
