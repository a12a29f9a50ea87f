"""Curves as TensorBoard reads them."""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zaremba_jax.whole_files import naming

_PREFIX = "events.out.tfevents"
_SECONDS_UNSEEN = 30  # at most, until a point is on the disk


class TensorBoard:
    """Writes points into a folder, a file for each start of a program.

    A resumed run repeats what came after its last checkpoint and writes those points again.
    The first event of each file tells TensorBoard from which step on the file replaces
    earlier points.
    """

    name = "TensorBoard"
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, step: int):
        """`step` is where the run stands."""
        self._folder, self._step, self._flushed = folder, step, time.time()
        self._writer: Any = None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Opens the file, which has the settings as hyperparameters."""
        # tensorboardX's `SummaryWriter` would write in a thread, which ends at the first error
        # and leaves the program waiting for it.
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import hparams

        with naming(self._folder):
            self._folder.mkdir(exist_ok=True)
            # TensorBoard reads files in the order of their names, whatever the clock says.
            stamps = [path.name.split(".")[3] for path in self._folder.glob(f"{_PREFIX}.*")]
            after = [int(stamp) + 1 for stamp in stamps if stamp.isdecimal()]
            origin = f"{max([int(time.time()), *after])}.{socket.gethostname()}.{self._step:012}"
            self._writer = RecordWriter(str(self._folder / f"{_PREFIX}.{origin}"))
        self._write(0, file_version="brain.Event:2")
        self._write(self._step + 1, session_log={"status": "START"})
        for summary in hparams(dict(settings), {"loss/valid_perplexity_estimate": 0.0})[:2]:
            self._write(0, summary=summary)
        self.flush()

    def points(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for tag, value in values.items():
            self._write(step, summary=scalar(tag, value))

    def histograms(self, step: int, values: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
        from tensorboardX.summary import histogram

        for tag, of_tag in values.items():
            self._write(step, summary=histogram(tag, of_tag, edges))

    def text(self, step: int, lines: Sequence[str]) -> None:
        from tensorboardX.summary import text

        content = "\n".join(f"    {line}" for line in lines)  # Markdown: as it is
        self._write(step, summary=text("samples", content))

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """As for `Board`; where the next start, which adds them anew, removes them."""
        self.points(step + 1, {f"results/{name}": value for name, value in values.items()})

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        events: Any = event_pb2  # whose names are made at import
        now = time.time()
        with naming(self._folder):
            event = events.Event(step=step, wall_time=now, **content)
            self._writer.write(event.SerializeToString())
        if now - self._flushed > _SECONDS_UNSEEN:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.time()
        with naming(self._folder):
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with naming(self._folder):
                self._writer.close()
