"""The folder of a run: the names of its files, whose run it holds, and which process holds it."""

import fcntl
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import jax

from experiments.training.identity import differing_settings
from experiments.training.written_files import write_json
from zaremba_jax.checkpoint import CHECKSUMS_FILE
from zaremba_jax.config import Config, settings, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.presets import from_dict

_LONGEST_NAME = 200  # bytes


class Workdir:
    """Paths of a run's files; nothing is created before `hold`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.json"
        self.kernel = self.path / "kernel.json"
        self.metrics = self.path / "metrics.jsonl"
        self.histories = (self.metrics, self.checkpoints / "history.jsonl")  # of equal content
        self.metrics_table = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.model = self.path / "model.safetensors"
        self.members = self.path / "members"
        self.mixtures = self.path / "mixtures.png"
        self.sweep = self.path / "sweep.png"
        self.pictures = (self.curves, self.mixtures, self.sweep)
        self.tensorboard = self.path / "tensorboard"
        self.wandb_id = self.path / "wandb_id.txt"
        self.nll = self.path / "nll.npz"
        self._held: os.stat_result | None = None

    def refuse_another_run(self, config: Config, **more: Any) -> None:
        """Refuses a directory that cannot hold this run, before anything is written.

        It may hold the same run with more or fewer epochs; `more` are the settings besides those of
        the configuration.

        Raises:
          InputError: it holds a run of another configuration, a damaged `config.json` or results
            that no run left, its path is not UTF-8, or it is a file.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{self.path}: is not UTF-8, which checkpoints need; name another --workdir"
            ) from None
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; name a folder with --workdir")
        if not self.config.exists():
            return self._refuse_other_results()
        try:
            saved = read_json_object(self.config)
        except ValueError:
            raise InputError(
                f"{self.config}: is damaged; remove it if the run in {self.path} is this one,"
                " or name another --workdir"
            ) from None
        differing = differing_settings(saved, to_dict(config) | more)
        if differing:
            listed = (f"{name} ({a} there, {b} here)" for name, (a, b) in differing.items())
            raise InputError(
                f"{self.path}: holds a run of another configuration: {', '.join(listed)};"
                " name another --workdir, or give the same flags again to resume it"
            )

    def _refuse_other_results(self) -> None:
        # Not what else lies there: a run leaves it whose folder is moved while it saves.
        checkpoints = [path for path in self.checkpoints.glob("*") if path.name.isdecimal()]
        results = (self.summary, self.metrics, self.metrics_table, self.model, self.members)
        paths = [path for path in (*results, *self.pictures, *checkpoints) if path.exists()]
        if paths and not any(self.checkpoints.glob(f"*/{CHECKSUMS_FILE}")):
            raise InputError(
                f"{self.path}: holds {paths[0].relative_to(self.path)}, which no training run left"
                " there; name another --workdir"
            )

    def read_config(self) -> tuple[Config, dict[str, Any]]:
        """What `write_config` wrote: the configuration, and the settings besides it.

        Raises:
          OSError, ValueError, TypeError: the file is missing or is not what `write_config` wrote.
        """
        flat = read_json_object(self.config)
        more = {name: flat.pop(name) for name in flat.keys() - settings().keys()}
        return from_dict(flat), more

    def other_settings(self) -> dict[str, Any]:
        """Those besides the configuration of the run that it holds, if its `config.json` is whole.

        `members` is of many models, `vary` of a sweep, which has no model before its end.
        """
        try:
            return self.read_config()[1]
        except (OSError, ValueError, TypeError):
            return {}

    def hold(self) -> None:
        """Creates the directory and locks it for this process until the process ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:  # on behalf of all hosts
            _lock(self.path.resolve())
        self._held = self.path.stat()

    def require_held(self) -> None:
        """Refuses to go on if the directory that `hold` locked is no longer there.

        Raises:
          InputError: it was moved or removed, and another may stand in its place.
        """
        try:
            is_there = self._held is None or os.path.samestat(self._held, self.path.stat())
        except OSError:
            is_there = False
        if not is_there:
            raise InputError(
                f"{self.path}: was moved or removed while the run trained there; put it back, or"
                " name its new place with --workdir, and give the same command again"
            )

    def write_config(self, config: Config, **more: Any) -> None:
        """Writes `config.json`; arguments as for `refuse_another_run`."""
        write_json(self.config, to_dict(config) | more)

    def member(self, seed: int) -> Path:
        """Path of the model of an ensemble's member, or of a sweep's best setting."""
        return self.members / f"seed-{seed}.safetensors"


@functools.cache  # a process locks a directory once
def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{path}: another process trains there; wait for it to end, or name another --workdir"
        ) from None
    except OSError:
        pass  # a file system without locks
    return descriptor


def shortened(name: str) -> str:
    """A file's name; the end of a long one becomes a hash, since file systems allow 255 bytes."""
    data = name.encode(errors="surrogateescape")
    if len(data) <= _LONGEST_NAME:
        return name
    start = data[: _LONGEST_NAME - 17].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(data).hexdigest()[:16]}"
