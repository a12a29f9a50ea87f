"""The host's side of training: chunks, epochs, checkpoints, interruption, resumption."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.progress import EpochProgress
from experiments.workdir import Workdir, write_json_lines
from zaremba_jax import checkpoint
from zaremba_jax.array_types import Windows
from zaremba_jax.config import Config, to_dict
from zaremba_jax.corpus import Corpus, windows
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.optimizer import learning_rate
from zaremba_jax.train import TrainState, init_train_state, train_windows

EVALUATION_STREAMS = 20  # of the estimate after each epoch


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or no number."""


class InterruptedRunError(Exception):
    """A signal stopped the run, which is saved; `status` is the shell's for that signal."""

    def __init__(self, workdir: Workdir, step: int, windows_per_epoch: int, number: int):
        epoch, window = divmod(step, windows_per_epoch)
        super().__init__(
            f"stopped by {signal.Signals(number).name} after epoch {epoch}, window {window} of"
            f" {windows_per_epoch}; saved in {workdir.path}, give the same command to resume"
        )
        self.status = 128 + number


@dataclasses.dataclass
class Run:
    """Where a run stands: on the device, and what the host keeps beside it."""

    state: TrainState
    step: int = 0  # windows trained on, as in `state`
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a record an epoch
    epoch_nll: float = 0.0  # sum over this epoch's windows so far of their mean nats a token
    epoch_seconds: float = 0.0  # spent training in this epoch so far
    seconds: float = 0.0  # spent training and evaluating since the run first began


_KEPT = ("step", "history", "epoch_nll", "epoch_seconds", "seconds")


def train(
    config: Config,
    corpus: Corpus,
    workdir: Workdir,
    console: Console,
    *,
    chunk: int,
    checkpoint_minutes: float,
) -> Run:
    """Trains to the last epoch, from the newest checkpoint where there is one.

    Args:
      config: the run.
      corpus: its text.
      workdir: takes a checkpoint and a line of `metrics.jsonl` at each epoch's end.
      console: takes the progress.
      chunk: windows trained on the device between two looks of the host.
      checkpoint_minutes: an epoch that lasts longer is saved on the way, this often.

    Raises:
      ValueError: as `corpus.windows` and `start_or_resume`; nothing has been written then.
      NonFiniteLossError: the last checkpoint is the one before it happened.
      InterruptedRunError: SIGINT or SIGTERM came; the run is saved where it stood.
    """
    text = jnp.asarray(windows(corpus.train, config.train.batch_size, config.train.unroll))
    run = start_or_resume(config, corpus, workdir, len(text), console)
    workdir.create(config)
    write_json_lines(workdir.metrics, run.history)
    saved = time.monotonic()
    with (
        EpochProgress(console, config.train.epochs, len(text), run.step) as progress,
        _signals() as received,
    ):
        while run.step < config.train.epochs * len(text):
            progress.windows(run.step, **train_chunk(config, text, run, chunk))
            epoch_ends = run.step % len(text) == 0
            if epoch_ends:
                finish_epoch(config, corpus, run, len(text))
                progress.epoch(run.history[-1])
            if epoch_ends or received or time.monotonic() - saved > 60 * checkpoint_minutes:
                checkpoint.save(workdir.checkpoints, run.state, _record(config, corpus, run))
                write_json_lines(workdir.metrics, run.history)
                saved = time.monotonic()
            if received:
                raise InterruptedRunError(workdir, run.step, len(text), received[0])
    return run


def start_or_resume(
    config: Config, corpus: Corpus, workdir: Workdir, windows_per_epoch: int, console: Console
) -> Run:
    """The newest whole checkpoint of the working directory, or a new run.

    Raises:
      ValueError: the checkpoint is of another text, or every checkpoint is damaged.
    """
    state = init_train_state(config, len(corpus.vocabulary), windows_per_epoch)
    restored = checkpoint.restore(workdir.checkpoints, like=state)
    if restored is None:
        return Run(state)
    for path in restored.damaged:
        console.print(f"{path} was damaged: going on from the checkpoint before", soft_wrap=True)
    if restored.record["corpus_sha256"] != corpus.fingerprint:
        raise ValueError(
            f"{workdir.path}: holds a run on another text; name another --workdir, or give the"
            " text of that run"
        )
    run = Run(restored.state, **{name: restored.record[name] for name in _KEPT})
    epoch, window = divmod(run.step, windows_per_epoch)
    console.print(
        f"resuming {workdir.path} after epoch {epoch}, window {window}", soft_wrap=True
    )
    return run


def train_chunk(config: Config, text: Windows, run: Run, chunk: int) -> dict[str, float]:
    """Trains on the next windows, at most to the end of the epoch.

    Returns:
      The epoch so far: perplexity, learning rate, words a second.

    Raises:
      NonFiniteLossError: a window's loss is not finite.
    """
    started = time.monotonic()
    epoch, window = divmod(run.step, len(text))
    count = min(chunk, len(text) - window)
    run.state, window_nll = train_windows(config, run.state, text, count)
    nll = np.asarray(window_nll, np.float64)
    if not np.isfinite(nll).all():
        bad = int(np.argmin(np.isfinite(nll)))
        raise NonFiniteLossError(
            f"the loss became {nll[bad]} at step {run.step + bad + 1} (epoch {epoch + 1}, window"
            f" {window + bad + 1}); the last checkpoint before it is kept; try a lower"
            " --learning_rate or --clip_norm"
        )
    elapsed = time.monotonic() - started
    run.step += count
    run.seconds += elapsed
    run.epoch_seconds += elapsed
    run.epoch_nll += float(nll.sum())
    seen = window + count
    return {
        "perplexity": float(np.exp(run.epoch_nll / seen)),
        "learning_rate": learning_rate(config.train, epoch + 1),
        "words_per_second": seen * config.train.batch_size * config.train.unroll / run.epoch_seconds,
    }


def finish_epoch(config: Config, corpus: Corpus, run: Run, windows_per_epoch: int) -> None:
    """Estimates the validation perplexity and adds the epoch's record to the history."""
    started = time.monotonic()
    estimate = perplexity(text_nll(run.state.params, corpus.valid, EVALUATION_STREAMS))
    run.seconds += time.monotonic() - started
    epoch = run.step // windows_per_epoch
    words = windows_per_epoch * config.train.batch_size * config.train.unroll
    run.history.append(
        {
            "epoch": epoch,
            "learning_rate": learning_rate(config.train, epoch),
            "train_perplexity": float(np.exp(run.epoch_nll / windows_per_epoch)),
            "valid_perplexity_estimate": estimate,
            "words_per_second": words / run.epoch_seconds,
            "seconds": run.seconds,
        }
    )
    run.epoch_nll = run.epoch_seconds = 0.0


def _record(config: Config, corpus: Corpus, run: Run) -> dict[str, Any]:
    return {
        "config": to_dict(config),
        "vocabulary_sha256": corpus.vocabulary.fingerprint,
        "corpus_sha256": corpus.fingerprint,
        **{name: getattr(run, name) for name in _KEPT},
    }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; the second of a kind has its usual effect."""
    received: list[int] = []
    usual = {}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, usual[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        usual[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
