"""The files that a run leaves in its working directory."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from zaremba_jax.config import Config, to_dict


class Workdir:
    """Paths of a run's files; nothing is made before `create`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.mixtures = self.path / "mixtures.png"

    def check(self, config: Config, **more: Any) -> None:
        """Refuses a directory that cannot hold this run, before anything is written.

        Args:
          config: of the run.
          more: settings of the run beside it.

        Raises:
          ValueError: it holds a run of another configuration.
          NotADirectoryError: the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path}: is a file; name a folder with --workdir")
        if not self.config.exists():
            return
        try:
            found = dict(json.loads(self.config.read_text()))
        except (ValueError, TypeError):
            raise ValueError(
                f"{self.config}: is damaged; remove it if the run in {self.path} is this one,"
                " or name another --workdir"
            ) from None
        wanted = to_dict(config) | more
        differing = [
            f"{name} ({found.get(name)} there, {wanted.get(name)} here)"
            for name in sorted(found.keys() | wanted.keys())
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path}: holds a run of another configuration: {', '.join(differing)};"
                " name another --workdir, or give the same flags again to resume it"
            )

    def create(self, config: Config, **more: Any) -> None:
        """Makes the directory and writes `config.json`; arguments as of `check`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, to_dict(config) | more)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, all of it or nothing."""
    _write(path, json.dumps(content, indent=2) + "\n")


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes a file with one JSON record a line, all of it or nothing."""
    _write(path, "".join(json.dumps(record) + "\n" for record in records))


def _write(path: Path, text: str) -> None:
    if jax.process_index() > 0:  # of several hosts, the first writes
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
