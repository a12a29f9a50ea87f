"""What TensorBoard shows of a run: curves over the windows trained on, and its gates."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaremba_jax.array_types import WindowStatistics
from zaremba_jax.inference.gates import Gates

_TANHS = ("u", "n", "h")  # range from -1; the other gates are sigmoids, which range from 0
_BINS = 20
_CURVES = ("learning_rate", "words_per_second")


def is_installed() -> bool:
    """Whether the package that writes the files, an extra, is installed."""
    return importlib.util.find_spec("tensorboardX") is not None


class TensorBoard:
    """Writes points into a folder, at steps that count the windows trained on.

    A resumed run repeats what came after its last checkpoint and writes those points again.
    The first event of each file tells TensorBoard from which step on the file replaces
    earlier points. There is a file for all points between two calls of `flush`, since only
    closing a file writes all of it to the disk.
    """

    def __init__(self, folder: Path, step: int):
        """`step` is where the run stands. With several hosts, only the first writes."""
        self._folder, self._step, self._writer = folder, step, None

    def windows(
        self, step: int, chunk_statistics: dict[str, float], so_far: dict[str, Any]
    ) -> None:
        """Adds points for the last windows, from `averages`, and for the epoch so far."""
        points = {f"train/{name}": value for name, value in chunk_statistics.items()}
        points["train/perplexity_of_epoch_so_far"] = so_far["train_perplexity"]
        self._add(step, points | {name: so_far[name] for name in _CURVES if name in so_far})

    def epoch(self, step: int, record: dict[str, Any], gates: Gates) -> None:
        """Adds an epoch's estimates and, for each gate, a histogram over its range of values."""
        estimates = {
            f"valid/{name.removeprefix('valid_')}": value
            for name, value in record.items()
            if name.startswith("valid_") and isinstance(value, float)
        }
        self._add(step, estimates)
        if jax.process_index() > 0:
            return
        for depth, of_layer in enumerate(gates, start=1):
            for gate, values in of_layer.items():
                edges = np.linspace(-1 if gate in _TANHS else 0, 1, _BINS + 1)
                tag, content = f"gates/layer_{depth}_{gate}", np.asarray(values, np.float64)
                self._open().add_histogram(tag, content, step, edges)

    def samples(self, step: int, texts: Sequence[str]) -> None:
        """Adds texts that the model wrote."""
        if jax.process_index() == 0:
            self._open().add_text("samples", "\n".join(f"    {text}" for text in texts), step)

    def _add(self, step: int, points: dict[str, float]) -> None:
        if jax.process_index() == 0:
            for name, value in points.items():
                self._open().add_scalar(name, value, step)
            self._step = step

    def _open(self) -> Any:
        """The file for the next points, which replace those after the last step written."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # TensorBoard reads files in the order of their names; within a second, the step
            # decides it.
            self._writer = SummaryWriter(
                str(self._folder), purge_step=self._step + 1, filename_suffix=f".{self._step:012}"
            )
        return self._writer

    def flush(self) -> None:
        """Writes all points to disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def averages(windows: WindowStatistics) -> dict[str, float]:
    """Statistics of several windows by the names of their curves."""
    return {
        "nats": float(windows.nll.mean()),
        "gradient_norm": float(windows.gradient_norm.mean()),
        "gradient_norm_largest": float(windows.gradient_norm.max()),
    }
