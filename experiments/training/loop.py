"""The loop of training: windows, epochs, checkpoints, until the last epoch or a signal."""

import shlex
import signal
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from experiments.endings.errors import ProgramEndError
from experiments.endings.signals import deferred_signals
from experiments.training import remarks
from experiments.training.curves import Curves
from experiments.training.environment import environment
from experiments.training.epoch_display import EpochDisplay
from experiments.training.history import EpochFiles
from experiments.training.hosts import largest_over_hosts
from experiments.training.provenance import peak_memory, provenance
from experiments.training.resumption import Saves
from experiments.training.run import Run, gates, is_finished, position
from experiments.training.run_folder import Workdir
from experiments.training.sample_lines import sample_lines
from experiments.training.standstill import StandstillNews


class InterruptedRunError(ProgramEndError):
    """A signal stopped the run, which is saved; `status` is the exit status for that signal."""

    is_error = False

    def __init__(self, run: Run, workdir: Workdir, number: int):
        epoch, window = position(run)
        told = (
            f"stopped by {signal.Signals(number).name} after epoch {epoch}, window {window} of"
            f" {len(run.windows)}; saved in {workdir.path}, give the same command to resume"
        )
        if "vary" not in workdir.other_settings():
            folder = shlex.quote(str(workdir.path))
            told += f", or try its model: experiments.generate --workdir={folder}"
        super().__init__(told)
        self.status = 128 + number


def train(
    run: Run,
    workdir: Workdir,
    console: Console,
    *,
    chunk: int,
    checkpoint_minutes: float,
    log_minutes: float,
    samples: int,
    curves: Curves,
) -> None:
    """Trains to the last epoch, or until the run is out of patience.

    Args:
      run: the run to continue; updated in place.
      workdir: gets a line of `metrics.jsonl` and `metrics.csv` at each epoch's end, and a
        checkpoint unless saving would take more than a twentieth of the time; after the last epoch
        always.
      console: shows the progress.
      chunk: windows trained on the device before the host checks losses and signals.
      checkpoint_minutes: the longest time between two saves, up to the end of a chunk.
      log_minutes: off a terminal, the longest time without a line, likewise.
      samples: lines that the model writes after each epoch.
      curves: get points for each chunk and each epoch.

    Raises:
      NonFiniteLossError: training diverged; the last checkpoint is from before that.
      InputError: the folder was moved or removed.
      InterruptedRunError: a signal asked it to stop; the run is saved where it stood.
    """
    epoch_files = EpochFiles(workdir, run.journal.history)
    if not is_finished(run):
        workdir.summary.unlink(missing_ok=True)  # left by a run of fewer epochs
        run.journal.provenance = provenance() | environment(run.devices)
    say(console, remarks.on_schedule(run))
    saves, standstills = Saves(run, workdir, checkpoint_minutes), StandstillNews()
    with (
        deferred_signals() as first_signal,  # before the bar: one that hits its start leaves it
        EpochDisplay(console, run, log_minutes) as display,
    ):
        while not is_finished(run):
            _, window = position(run)
            windows = min(chunk, len(run.windows) - window)
            display.begins(windows)
            averages, so_far = train_chunk(run, windows)
            record, texts = None, []
            workdir.require_held()  # before anything is written that would make another
            display.windows(so_far)
            curves.windows(run.step, averages, so_far)
            if run.step % len(run.windows) == 0:
                record = finish_epoch(run)
                epoch_files.add(record)
                texts = sample_lines(run, samples) if samples else []
                if curves.are_wanted:
                    curves.epoch(run.step, record, gates(run), texts)
            number, due = largest_over_hosts(first_signal(), saves.is_due())
            if number or due:
                curves.flush()  # a resumed run repeats no points from before its checkpoint
                saves.save()
            if record is not None:  # only now: a line that cannot be printed loses nothing
                display.epoch(record, texts)
                say(console, [*standstills.of_epoch(run), *remarks.on_epoch(run)])
            if number:  # only now, after the save that the message reports
                raise InterruptedRunError(run, workdir, number)
    (number,) = largest_over_hosts(first_signal())
    if number:  # it came while the last checkpoint was written, or the bar taken away
        raise InterruptedRunError(run, workdir, number)
    say(console, remarks.on_end(run))


def say(console: Console, lines: Iterable[str]) -> None:
    """Prints each line."""
    for line in lines:
        console.print(line, soft_wrap=True)


def train_chunk(run: Run, windows: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Trains on the next windows, all of one epoch; returns averages and metrics."""
    started = time.monotonic()
    epoch, window = position(run)
    nll, averages = run.train(windows)
    run.journal.add_windows(nll, time.monotonic() - started)
    return averages, run.metrics(epoch + 1, window + windows)


def finish_epoch(run: Run) -> dict[str, Any]:
    """Estimates the validation perplexity; returns the epoch's record, now added to the history.

    With `keep="best"`, the parameters are kept if they are the best so far.
    """
    started = time.monotonic()
    estimate = run.estimate()
    seconds = time.monotonic() - started
    epoch, _ = position(run)
    run.journal.end_epoch(run.metrics(epoch, len(run.windows)) | estimate, seconds)
    if run.config.train.keep == "best":
        run.keep_best()
    run.journal.provenance |= peak_memory()
    return run.journal.history[-1]
