"""Curves as Weights & Biases shows them, through its own library."""

import html
import importlib
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_text

_PROJECT = "zaremba_jax"  # unless WANDB_PROJECT names another


class WandbRun:
    """A run of Weights & Biases, which a resumed run goes on in.

    Its steps are the windows trained on. Those that a resumed run repeats it has already, with the
    same values.
    """

    failures: tuple[type[Exception], ...]
    name = "Weights & Biases"

    def __init__(self, workdir: Workdir):
        self._wandb, self._workdir = importlib.import_module("wandb"), workdir
        self._run: Any = None
        self.failures = (OSError, self._wandb.Error)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Opens the run of the identity that the folder has, or a new one."""
        # Set up silent, the library asks for no login on a terminal, where training would wait for
        # the answer; without a key it fails as it does in a pipe.
        try:
            self._wandb.setup(self._wandb.Settings(silent=True, console="off"))
            self._run = self._wandb.init(
                id=self._identity(),
                resume="allow",
                name=self._workdir.path.resolve().name,
                project=None if "WANDB_PROJECT" in os.environ else _PROJECT,
                config=dict(settings),
                dir=self._workdir.path,
            )
        except ValueError as error:  # a variable of its own has a value that it does not take
            raise self._wandb.Error(str(error)) from error

    def _identity(self) -> str:
        path = self._workdir.wandb_id
        known = path.read_text(errors="replace").strip() if path.exists() else ""
        if not known:
            known = secrets.token_hex(4)
            write_text(path, f"{known}\n")
        return known

    def points(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histograms(self, step: int, values: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
        self._run.log(
            {
                tag: self._wandb.Histogram(np_histogram=np.histogram(of_tag, edges))
                for tag, of_tag in values.items()
            },
            step=step,
        )

    def text(self, step: int, lines: Sequence[str]) -> None:
        content = html.escape("\n".join(lines))
        self._run.log({"samples": self._wandb.Html(f"<pre>{content}</pre>")}, step=step)

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """As for `Board`; a column of the table of runs for each."""
        self._run.summary.update(dict(values))

    def flush(self) -> None:
        """As for `Board`; the library sends everything at once."""

    def close(self) -> None:
        """As for `Board`; ends the library's process too, which would report at the very end."""
        try:
            if self._run is not None:
                self._run.finish()
        finally:
            self._wandb.teardown()
