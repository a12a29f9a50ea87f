"""The host side of training: chunks, epochs, checkpoints, interruption, resumption."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from experiments.training.progress import EpochProgress
from experiments.training.run_folder import Workdir, write_json_lines
from experiments.training.single_run import Run
from experiments.training.tensorboard import Board
from zaremba_jax import checkpoint
from zaremba_jax.config import defaults, to_dict
from zaremba_jax.errors import InputError


class InterruptedRunError(Exception):
    """A signal stopped the run, which is saved; `status` is the exit status for that signal."""

    def __init__(self, run: Run, workdir: Workdir, number: int):
        epoch, window = run.position
        super().__init__(
            f"stopped by {signal.Signals(number).name} after epoch {epoch}, window {window} of"
            f" {len(run.windows)}; saved in {workdir.path}, give the same command to resume"
        )
        self.status = 128 + number


RunT = TypeVar("RunT", bound=Run)
# An epoch's end is saved if the last save is longer ago than this many times what it took.
_SAVE_TIME_MULTIPLE = 20
# Settings that may change between two starts, as every checkpoint records them: the kernel
# may differ between machines, and no epoch depends on how many are to come.
_MAY_CHANGE = {"kernel": defaults()["kernel"], "epochs": 0}


def resume(run: RunT, workdir: Workdir, console: Console) -> RunT:
    """The run as of the newest intact checkpoint in the working directory, if there is one.

    Raises:
      InputError: the checkpoint is of another configuration or text, or of more epochs than
        requested; every checkpoint is damaged; or the run is finished and has none.
    """

    def make_template(record: dict[str, Any]) -> Any:
        if [defaults() | flat | _MAY_CHANGE for flat in record["configs"]] != _configs(run):
            raise InputError(
                f"{workdir.path}: has checkpoints of another configuration; give the flags of that"
                " run, or name another --workdir"
            )
        if record["corpus_sha256"] != run.corpus.fingerprint:
            raise InputError(
                f"{workdir.path}: holds a run on another text; name another --workdir, or give"
                " the text of that run"
            )
        return run.host_buffers(record["layout"]) if layout_differs(record) else run.state

    def layout_differs(record: dict[str, Any]) -> bool:
        return record["layout"] != run.layout

    restored = checkpoint.restore(workdir.checkpoints, make_template)
    if restored is None:
        if workdir.summary.exists():
            raise InputError(
                f"{workdir.path}: holds a finished run whose checkpoints are gone; remove its"
                " summary.json to train it again, or leave it as it is"
            )
        return run
    for path in restored.damaged:
        console.print(f"{path} was damaged: continuing from the one before", soft_wrap=True)
    kept = {name: restored.record[name] for name in run.kept}
    other = layout_differs(restored.record)
    state = run.cut(restored.state) if other else restored.state
    run = dataclasses.replace(run, state=state, **kept)
    epoch, window = run.position
    if (epoch, window) > (run.config.train.epochs, 0):
        raise InputError(
            f"{workdir.path}: has trained for {epoch} epochs and {window} windows; give"
            f" --epochs={epoch + (window > 0)} or more, or name another --workdir"
        )
    console.print(f"resuming {workdir.path} after epoch {epoch}, window {window}", soft_wrap=True)
    return run


def train(
    run: Run,
    workdir: Workdir,
    console: Console,
    *,
    chunk: int,
    checkpoint_minutes: float,
    board: Board | None = None,
) -> None:
    """Trains to the last epoch.

    Args:
      run: the run to continue; updated in place.
      workdir: gets a line of `metrics.jsonl` at each epoch's end, and a checkpoint unless
        saving would take more than a twentieth of the time; after the last epoch always.
      console: shows the progress.
      chunk: windows trained on the device before the host checks losses and signals.
      checkpoint_minutes: the longest time between two saves, up to the end of a chunk.
      board: gets points for each chunk and each epoch.

    Raises:
      NonFiniteLossError: training diverged; the last checkpoint is from before that.
      InterruptedRunError: SIGINT or SIGTERM came; the run is saved where it stood.
    """
    epochs, per_epoch = run.config.train.epochs, len(run.windows)
    write_json_lines(workdir.metrics, run.history)
    if run.step < epochs * per_epoch:
        workdir.summary.unlink(missing_ok=True)  # left by a run of fewer epochs
    saved, saving, run.record_grad_norm = time.monotonic(), 0.0, board is not None
    with (
        EpochProgress(console, epochs, per_epoch, run.step) as progress,
        _signals() as first_signal,
    ):
        while run.step < epochs * per_epoch:
            so_far = train_chunk(run, chunk)
            progress.windows(run.step, so_far)
            epoch_ends = run.step % per_epoch == 0
            if epoch_ends:
                finish_epoch(run)
                write_json_lines(workdir.metrics, run.history)
                progress.epoch(run.history[-1])
            if board is not None:
                board.windows(run.step, run.chunk_statistics, so_far)
                if epoch_ends:
                    board.epoch(run.step, run.history[-1], run.gates())
            since = time.monotonic() - saved
            worth_it = epoch_ends and (
                run.step == epochs * per_epoch or since > _SAVE_TIME_MULTIPLE * saving
            )
            number, due = _largest(first_signal(), worth_it or since > 60 * checkpoint_minutes)
            if number or due:
                if board is not None:
                    board.flush()  # a resumed run repeats no points from before its checkpoint
                started = time.monotonic()
                checkpoint.save(workdir.checkpoints, run.step, run.state, _record(run))
                saved = time.monotonic()
                saving = saved - started
                if number:  # only now, after the save that the message reports
                    raise InterruptedRunError(run, workdir, number)
        (number,) = _largest(first_signal())
        if number:  # it came while the last checkpoint was written
            raise InterruptedRunError(run, workdir, number)


def train_chunk(run: Run, chunk: int) -> dict[str, float]:
    """Trains on the next windows, at most to the end of the epoch.

    Returns:
      `run.progress` of the epoch so far.

    Raises:
      NonFiniteLossError: as for `Run.train`.
    """
    started = time.monotonic()
    epoch, window = run.position
    count = min(chunk, len(run.windows) - window)
    run.train(count)
    elapsed = time.monotonic() - started
    run.step += count
    run.seconds += elapsed
    run.epoch_seconds += elapsed
    return run.progress(epoch + 1, window + count)


def finish_epoch(run: Run) -> None:
    """Estimates the validation perplexity and adds the epoch's record to the history."""
    started = time.monotonic()
    estimate = run.estimate()
    run.seconds += time.monotonic() - started
    metrics = run.progress(run.position[0], len(run.windows))
    run.history.append(metrics | estimate | {"seconds": run.seconds})
    run.end_epoch()


def _record(run: Run) -> dict[str, Any]:
    return {
        "configs": _configs(run),
        "corpus_sha256": run.corpus.fingerprint,
        "layout": run.layout,
        **run.kept,
    }


def _configs(run: Run) -> list[dict[str, Any]]:
    """Each model's configuration, with fixed values for the settings that may change."""
    return [to_dict(config) | _MAY_CHANGE for config in run.all_configs]


def _largest(*numbers: int) -> list[int]:
    """The maximum of each number over the hosts, so that all decide alike."""
    if jax.process_count() == 1:
        return list(numbers)
    return multihost_utils.process_allgather(np.array(numbers)).max(axis=0).tolist()


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Defers SIGINT and SIGTERM; the second of a kind has its usual effect.

    Yields:
      A function that returns the first signal's number, 0 if none has come.
    """
    received: list[int] = []
    handlers = {}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, handlers[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
