"""The host's side of training: chunks, epochs, checkpoints, interruption, resumption."""

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.progress import EpochProgress
from experiments.workdir import Workdir, write_json_lines
from zaremba_jax import checkpoint
from zaremba_jax.array_types import TrainState, Windows
from zaremba_jax.config import Config, to_dict
from zaremba_jax.corpus import Corpus, windows
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.optimizer import learning_rate
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.train import init_train_state, train_windows

EVALUATION_STREAMS = 20  # of the estimate after each epoch


class NonFiniteLossError(ArithmeticError):
    """The loss or a parameter became infinite or no number."""


@dataclasses.dataclass
class Run:
    """A run and where it stands: on the device, and what the host keeps beside it."""

    config: Config
    corpus: Corpus
    windows: Windows
    state: TrainState
    step: int = 0  # windows trained on, as in `state`
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # a record an epoch
    epoch_nll: float = 0.0  # sum over this epoch's windows so far of their mean nats a token
    epoch_seconds: float = 0.0  # spent training in this epoch so far
    seconds: float = 0.0  # spent training and evaluating since the run first began

    @property
    def position(self) -> tuple[int, int]:
        """Whole epochs behind, and windows since."""
        return divmod(self.step, len(self.windows))

    def progress(self, epoch: int, windows: int) -> dict[str, float]:
        """Learning rate, training perplexity and speed over an epoch's first windows."""
        train = self.config.train
        words = windows * train.batch_size * train.unroll
        return {
            "epoch": epoch,
            "learning_rate": learning_rate(train, epoch),
            "train_perplexity": float(np.exp(self.epoch_nll / windows)),
            "words_per_second": words / self.epoch_seconds,
        }


class InterruptedRunError(Exception):
    """A signal stopped the run, which is saved; `status` is the shell's for that signal."""

    def __init__(self, run: Run, workdir: Workdir, number: int):
        epoch, window = run.position
        super().__init__(
            f"stopped by {signal.Signals(number).name} after epoch {epoch}, window {window} of"
            f" {len(run.windows)}; saved in {workdir.path}, give the same command to resume"
        )
        self.status = 128 + number


_KEPT = ("step", "history", "epoch_nll", "epoch_seconds", "seconds")


def start_or_resume(config: Config, corpus: Corpus, workdir: Workdir, console: Console) -> Run:
    """The newest whole checkpoint of the working directory, or a new run.

    Raises:
      ValueError: the text is too short, the checkpoint is of another text, or every
        checkpoint is damaged.
    """
    text = windows(corpus.train, config.train.batch_size, config.train.unroll)
    state = init_train_state(config, len(corpus.vocabulary), len(text))
    run = Run(config, corpus, jnp.asarray(text), state)

    def check(record: dict[str, Any]) -> None:
        if record["corpus_sha256"] != corpus.fingerprint:
            raise ValueError(
                f"{workdir.path}: holds a run on another text; name another --workdir, or give"
                " the text of that run"
            )

    restored = checkpoint.restore(workdir.checkpoints, state, check)
    if restored is None:
        return run
    for path in restored.damaged:
        console.print(f"{path} was damaged: going on from the one before", soft_wrap=True)
    kept = {name: restored.record[name] for name in _KEPT}
    run = dataclasses.replace(run, state=restored.state, **kept)
    epoch, window = run.position
    console.print(f"resuming {workdir.path} after epoch {epoch}, window {window}", soft_wrap=True)
    return run


def train(
    run: Run, workdir: Workdir, console: Console, *, chunk: int, checkpoint_minutes: float
) -> None:
    """Trains to the last epoch.

    Args:
      run: where to start; moved on.
      workdir: takes a checkpoint and a line of `metrics.jsonl` at each epoch's end.
      console: takes the progress.
      chunk: windows trained on the device between two looks of the host.
      checkpoint_minutes: an epoch that lasts longer is saved on the way, this often.

    Raises:
      NonFiniteLossError: the last checkpoint is the one before it happened.
      InterruptedRunError: SIGINT or SIGTERM came; the run is saved where it stood.
    """
    epochs, per_epoch = run.config.train.epochs, len(run.windows)
    write_json_lines(workdir.metrics, run.history)
    saved = time.monotonic()
    with (
        EpochProgress(console, epochs, per_epoch, run.step) as progress,
        _signals() as received,
    ):
        while run.step < epochs * per_epoch:
            progress.windows(run.step, train_chunk(run, chunk))
            epoch_ends = run.step % per_epoch == 0
            if epoch_ends:
                finish_epoch(run)
                progress.epoch(run.history[-1])
            if epoch_ends or received or time.monotonic() - saved > 60 * checkpoint_minutes:
                checkpoint.save(workdir.checkpoints, run.state, _record(run))
                write_json_lines(workdir.metrics, run.history)
                saved = time.monotonic()
                if received:  # in here, so that what is said to be saved is
                    raise InterruptedRunError(run, workdir, received[0])


def train_chunk(run: Run, chunk: int) -> dict[str, float]:
    """Trains on the next windows, at most to the end of the epoch.

    Returns:
      `run.progress` of the epoch so far.

    Raises:
      NonFiniteLossError: a window's perplexity, or a parameter after them, is not finite.
    """
    started = time.monotonic()
    epoch, window = run.position
    count = min(chunk, len(run.windows) - window)
    run.state, window_nll = train_windows(run.config, run.state, run.windows, count)
    nll = np.asarray(window_nll, np.float64)
    _check_finite(run, nll)
    elapsed = time.monotonic() - started
    run.step += count
    run.seconds += elapsed
    run.epoch_seconds += elapsed
    run.epoch_nll += float(nll.sum())
    return run.progress(epoch + 1, window + count)


def _check_finite(run: Run, nll: np.ndarray) -> None:
    """Refuses a chunk's losses, and parameters that would make the next loss not finite."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.exp(nll))
    if not finite.all():
        bad = int(np.argmin(finite))
        problem = f"the loss became {nll[bad]:.4g}"
    elif not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state.params)):
        bad = len(nll) - 1
        problem = "a parameter became infinite or no number"
    else:
        return
    epoch, window = run.position
    raise NonFiniteLossError(
        f"{problem} at step {run.step + bad + 1} (epoch {epoch + 1}, window {window + bad + 1});"
        " the last checkpoint before it is kept; try a lower --learning_rate or --clip_norm"
    )


def finish_epoch(run: Run) -> None:
    """Estimates the validation perplexity and adds the epoch's record to the history."""
    started = time.monotonic()
    estimate = perplexity(
        text_nll(
            run.state.params,
            run.corpus.valid,
            EVALUATION_STREAMS,
            run.config.compute,
            expected_masks(run.config),
        )
    )
    run.seconds += time.monotonic() - started
    metrics = run.progress(run.position[0], len(run.windows))
    run.history.append(metrics | {"valid_perplexity_estimate": estimate, "seconds": run.seconds})
    run.epoch_nll = run.epoch_seconds = 0.0


def _record(run: Run) -> dict[str, Any]:
    return {
        "config": to_dict(run.config),
        "vocabulary_sha256": run.corpus.vocabulary.fingerprint,
        "corpus_sha256": run.corpus.fingerprint,
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
