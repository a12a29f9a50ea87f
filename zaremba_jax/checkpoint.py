"""Saves and restores the whole training state, bit for bit."""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.whole_files import NO_SPACE_LEFT, naming, write_whole

# One model's, or one per chunk of an ensemble.
State = Any
# Characters of a path: for its globs, for TensorStore, and those that stand for bytes not of UTF-8.
_SPECIAL_IN_ORBAX = frozenset("*?[]\\") | frozenset(map(chr, range(0xDC80, 0xDD00)))
_NO_SPACE = tuple(map(os.strerror, NO_SPACE_LEFT))
_UNFINISHED = "*.orbax-checkpoint-tmp*"  # names of folders that Orbax renames when complete
MAX_TO_KEEP = 2  # the newest, and one to fall back on
CHECKSUMS_FILE = "checksums.json"  # written last: without it, the newest checkpoint was cut off


class DamagedCheckpointError(InputError):
    """There are checkpoints, but none of them can be read."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint; `damaged` names the newer ones, which could not be read."""

    state: State
    record: dict[str, Any]
    damaged: tuple[str, ...]


def save(directory: str | Path, step: int, state: State, record: dict[str, Any]) -> None:
    """Writes a checkpoint, all of it or nothing, and removes all but the newest two.

    Every host of a run takes part and writes its own shards, to a directory that all share.

    Args:
      directory: of the run's checkpoints; created if missing.
      step: the windows trained on, `TrainState.step`, which names the checkpoint; higher than
        those before.
      state: the training state.
      record: what else belongs to the run, as JSON.

    Raises:
      ValueError: there is a checkpoint of this step, or of a later one.
      OSError: there is no space for it, or no permission, or what was written is incomplete.
    """
    arrays = jax.tree.map(_on_host, _storable(state))
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record)
    )
    with naming(directory), _manager(directory) as manager:
        newest = manager.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(
                f"step={step}: {directory} has a checkpoint of step {newest}; save a later step, or"
                " remove it with clear_after"
            )
        try:
            manager.save(step, args=items, force=True)
        except ValueError as error:
            if not _is_systems(error):
                raise
            raise OSError(f"{directory}: takes no checkpoint {_why(error)}") from None
        if not _has_all(Path(manager.directory, str(step)), arrays):
            raise OSError(
                f"{directory}: the checkpoint of step {step} lacks arrays of the state, although"
                " nothing was refused; those before it are intact; name another folder"
            )
    if jax.process_index() == 0:
        folder = Path(directory, str(step))
        write_whole(folder / CHECKSUMS_FILE, json.dumps(_checksums(folder)).encode())
    _wait_for_all("saved")


def restore(
    directory: str | Path, make_template: Callable[[dict[str, Any]], State]
) -> Restored | None:
    """Reads the newest intact checkpoint.

    Args:
      directory: of the run's checkpoints.
      make_template: takes the record, before the state is read, and returns a state of the same
        shapes, whose values do not matter; NumPy leaves are read as whole NumPy arrays.
        May raise if the checkpoint belongs to another run; the exception is passed on.

    Returns:
      The checkpoint, or None if no checkpoint was completed.

    Raises:
      DamagedCheckpointError: there are completed checkpoints, but none is intact.
      OSError: the system cannot read a file that is there, and may be intact.
    """
    if not Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        steps = sorted(manager.all_steps())
        cut_off = bool(steps) and not Path(directory, str(steps[-1]), CHECKSUMS_FILE).exists()
        finished = steps[:-1] if cut_off else steps
        newest = _newest_intact(directory, finished)
        if not finished:
            return None
        if newest is None:
            raise DamagedCheckpointError(
                f"{directory}: every checkpoint is damaged; remove the directory to start over"
            )
        items = _read(manager, newest, make_template)
    damaged = (str(Path(directory, str(step))) for step in finished if step > newest)
    return Restored(*items, damaged=tuple(damaged))


def clear_after(directory: str | Path, step: int) -> None:
    """Removes checkpoints after `step`, which a resumed run saves again, and temporary folders.

    Only the run itself may do this: to others, a checkpoint being written looks damaged.
    """
    is_there = Path(directory).is_dir()  # seen before any host goes on, and makes it
    _wait_for_all("read")
    if not is_there:
        return
    if jax.process_index() == 0:
        # Not by Orbax, whose thread would go on to the folder of the next checkpoint.
        for left in Path(directory).glob(_UNFINISHED):
            shutil.rmtree(left, ignore_errors=True)
    with _manager(directory) as manager:
        for later in manager.all_steps():
            if later > step:
                manager.delete(later)


def _is_systems(error: ValueError) -> bool:
    """Whether the error is how TensorStore reports that the system did not write a file."""
    return any(told in str(error) for told in ("os_error_code", "OS error", "local file"))


def _why(error: ValueError) -> str:
    """What the system says in TensorStore's report, with a question that helps."""
    told = str(error).partition("\n")[0]
    for no_space in _NO_SPACE:
        if no_space in told:
            return f"({no_space.lower()}); is the disk full?"
    return f"({told}); is it still there?"


def _on_host(x: Any) -> Any:
    """The array in NumPy, if this process has all of it.

    Of each array of jax's that Orbax writes, TensorStore (0.1.86) keeps some objects for ever.
    """
    return np.asarray(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x


def _has_all(folder: Path, arrays: Any) -> bool:
    """Whether the description of every array is in a checkpoint, as a resumed run needs it.

    By TensorStore's list, since Orbax's metadata keep some objects for ever.
    """
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/state/"}}
    try:
        keys = tensorstore.KvStore.open(database).result().list().result()
    except ValueError:
        return False
    described = [key for key in keys if key.endswith((b"/.zarray", b"/zarr.json"))]
    return len(described) == len(jax.tree.leaves(arrays))


def _read(
    manager: ocp.CheckpointManager, step: int, make_template: Callable[[dict[str, Any]], State]
) -> tuple[State, dict[str, Any]]:
    record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    wanted = make_template(record)
    stored = ocp.args.StandardRestore(jax.tree.map(_shape, _storable(wanted)))
    state = manager.restore(step, args=ocp.args.Composite(state=stored))["state"]

    def as_wanted(path: Any, template: Any) -> Any:
        x = _entry(state, path)
        return as_key(x, template) if _is_key(template) else x

    return jax.tree_util.tree_map_with_path(as_wanted, wanted), record


# Under jit, so that keys sharded over hosts stay sharded.
_wrap = jax.jit(jax.random.wrap_key_data, static_argnames="impl")


def as_key(data: jax.Array, like: Any) -> jax.Array:
    """The keys that raw data stand for, of the kind of another."""
    return _wrap(data, impl=str(jax.random.key_impl(like)))


def _shape(x: Any) -> Any:
    return x if isinstance(x, np.ndarray) else ocp.utils.to_shape_dtype_struct(x)


def _checksums(folder: Path) -> dict[str, int]:
    """A checksum of every file below a folder."""
    return {
        str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _newest_intact(directory: str | Path, steps: list[int]) -> int | None:
    """The last of the steps whose files are as they were written.

    One host checks for all: it has to read every file, the others only their own shards.
    """
    newest = -1
    if jax.process_index() == 0:
        intact = (step for step in reversed(steps) if _is_intact(Path(directory, str(step))))
        newest = next(intact, newest)
    if jax.process_count() > 1:
        newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
    return None if newest < 0 else newest


def _is_intact(folder: Path) -> bool:
    """Whether its files are as they were written; there may be more, which file managers add."""
    try:
        with naming(folder):
            written = read_json_object(folder / CHECKSUMS_FILE)
            return all(
                zlib.crc32(Path(folder, name).read_bytes()) == checksum
                for name, checksum in written.items()
            )
    # Not any error of the system: what cannot be read now may be intact.
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return False


def _wait_for_all(event: str) -> None:
    """Waits until every host has got this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


@contextmanager
def _manager(directory: str | Path) -> Iterator[ocp.CheckpointManager]:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=MAX_TO_KEEP, enable_async_checkpointing=False
    )
    logger = logging.getLogger("absl")
    logger.addFilter(_is_shown)
    try:
        with (
            _path_for_orbax(Path(directory).absolute()) as path,
            ocp.CheckpointManager(path, options=options) as manager,
        ):
            yield manager
    finally:
        logger.removeFilter(_is_shown)


def _is_shown(message: logging.LogRecord) -> bool:
    """False for Orbax's reports: checksums tell damage, and errors are raised."""
    return "orbax" not in Path(message.pathname).parts


@contextmanager
def _path_for_orbax(path: Path) -> Iterator[Path]:
    """The path, or a link to it if Orbax would misread a character of it.

    Orbax takes the path as a pattern when it merges what the processes wrote, and merges nothing,
    without an error, if the path has brackets. TensorStore refuses backslashes, and what is not
    UTF-8.
    """
    if _SPECIAL_IN_ORBAX.isdisjoint(str(path)):
        yield path
        return
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "checkpoints")
        link.symlink_to(path)
        yield link


def _storable(state: State) -> Any:
    """The state as Orbax is given it: its keys as plain numbers, its records as dictionaries.

    Orbax would want a field that is None in every file that it reads; here it has no entry.
    """
    if dataclasses.is_dataclass(state):
        fields = vars(state).items()
        return {name: _storable(x) for name, x in fields if not isinstance(x, str | None)}
    if type(state) is tuple:
        return tuple(map(_storable, state))
    return jax.random.key_data(state) if _is_key(state) else state


def _entry(stored: Any, path: Sequence[Any]) -> Any:
    """What stands at a path of the state in its form by `_storable`."""
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            stored = stored[key.name] if isinstance(stored, dict) else getattr(stored, key.name)
        else:
            stored = stored[key.idx]
    return stored


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
