"""The host side of training: chunks, epochs, checkpoints, interruption, resumption."""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from experiments import recut
from experiments.board import Board, Gates, averages, gate_activations
from experiments.progress import EpochProgress
from experiments.workdir import Workdir, write_json_lines, write_model
from zaremba_jax import checkpoint
from zaremba_jax.array_types import ModelParams, Windows
from zaremba_jax.config import Config, defaults, to_dict
from zaremba_jax.corpus import Corpus, TextWindows
from zaremba_jax.ensemble import fetch, init_data_parallel, make_mesh, train_data_parallel
from zaremba_jax.evaluate import count_predictions, perplexity, text_nll
from zaremba_jax.exported import Model
from zaremba_jax.feed import WindowFeed
from zaremba_jax.optimizer import learning_rate
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.train import all_finite, init_train_state, train_windows

EVALUATION_STREAMS = 20  # of the estimate after each epoch
DIVERGENCE_REMEDY = (
    "the checkpoints before it are kept; try a lower --learning_rate or --clip_norm, in another"
    " --workdir"
)


class NonFiniteLossError(ArithmeticError):
    """A loss, a parameter or the validation perplexity became infinite or NaN."""


@dataclasses.dataclass
class Run:
    """A run and its progress: the state on the device, and what the host keeps beside it."""

    config: Config
    corpus: Corpus
    windows: WindowFeed
    state: Any  # a `TrainState`
    step: int = 0  # windows trained on, as in `state`
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # one per epoch
    epoch_nll: Any = 0.0  # sum of the mean nats per token of this epoch's windows so far
    epoch_seconds: float = 0.0  # spent training in this epoch so far
    seconds: float = 0.0  # spent training and evaluating since the run first began
    mesh: Mesh | None = None  # of the devices that share the batch, if there are several
    record_grad_norm: bool = False  # whether to fill `chunk_statistics`
    chunk_statistics: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # of the last chunk
    kernel: dict[str, Any] = dataclasses.field(default_factory=dict)  # from `choose_kernel`

    @property
    def all_configs(self) -> list[Config]:
        """The configuration of each model that is trained."""
        return [self.config]

    @property
    def position(self) -> tuple[int, int]:
        """Whole epochs trained, and windows since."""
        return divmod(self.step, len(self.windows))

    @property
    def layout(self) -> dict[str, Any]:
        """How the state is split over the devices, as far as that decides its shape."""
        return {"streams": self.state.rnn_state[0].hidden.shape[0]}

    def host_buffers(self, there: dict[str, Any]) -> Any:
        """Host buffers for a state that was saved with another layout."""
        return recut.host_buffers(self.state, (), there["streams"])

    def cut(self, stored: Any) -> Any:
        """The state read into `host_buffers`, in this run's layout, on its devices."""
        return recut.cut(stored, self.state, self.config.train.batch_size)

    @property
    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds besides the state, by field name."""
        return {name: getattr(self, name) for name in _KEPT}

    @property
    def params(self) -> ModelParams:
        """The model's parameters, on a single device."""
        params = self.state.params
        if self.mesh is None:
            return params
        return jax.tree.map(lambda x: jnp.asarray(fetch(x)), params)

    def model(self) -> Model:
        """The model as trained so far, ready for use."""
        return Model(self.params, self.config, self.corpus.vocabulary)

    def write_models(self, workdir: Workdir) -> None:
        """Writes the model where the programs that use it look for it."""
        write_model(workdir.model, self.model())

    def progress(self, epoch: int, windows: int) -> dict[str, Any]:
        """Learning rate, training perplexity and speed over an epoch's first windows."""
        train = self.config.train
        words = windows * train.batch_size * train.unroll
        return {
            "epoch": epoch,
            "learning_rate": learning_rate(train, epoch),
            "train_perplexity": float(np.exp(self.epoch_nll / windows)),
            "words_per_second": words / self.epoch_seconds,
        }

    def next_windows(self, count: int) -> Windows:
        """The next `count` windows to train on, on the device."""
        _, window = self.position
        return self.windows[window : window + count]

    def train(self, count: int) -> None:
        """Trains on the next windows, checks the result, and adds to `epoch_nll`.

        Raises:
          NonFiniteLossError: a window's perplexity, or a parameter afterwards, is not finite.
        """
        chunk, per_epoch = self.next_windows(count), len(self.windows)
        if self.mesh is None:
            self.state, found = train_windows(
                self.config,
                self.state,
                chunk,
                windows_per_epoch=per_epoch,
                record_grad_norm=self.record_grad_norm,
            )
        else:
            self.state, found = train_data_parallel(
                self.config, self.state, chunk, self.mesh, per_epoch, self.record_grad_norm
            )
        self.windows.prefetch()
        found = np.asarray(found, np.float64)
        nll = found[..., 0] if self.record_grad_norm else found
        _check_finite(self, nll, bool(all_finite(self.state.params)))
        self.epoch_nll += float(nll.sum())
        self.chunk_statistics = averages(found) if self.record_grad_norm else {}

    def nll(self, ids: np.ndarray, streams: int = 1) -> np.ndarray:
        """Nats [predictions] of every token of a text but the first."""
        masks = expected_masks(self.config)
        return text_nll(self.params, ids, streams, self.config.compute, masks)

    def estimate(self) -> dict[str, Any]:
        """The validation perplexity by the faster protocol, as an entry of the epoch's record.

        Raises:
          NonFiniteLossError: it is not finite.
        """
        estimate = perplexity(self.nll(self.corpus.valid, EVALUATION_STREAMS))
        if not np.isfinite(estimate):
            raise NonFiniteLossError(
                f"the validation perplexity became {estimate} after epoch {self.position[0]};"
                f" {DIVERGENCE_REMEDY}"
            )
        return {"valid_perplexity_estimate": estimate}

    def gates(self) -> Gates:
        """The gates of the first model at the beginning of the validation text."""
        config, model = self.config, self.model()
        return gate_activations(
            model.params,
            self.corpus.valid,
            EVALUATION_STREAMS,
            config.train.unroll,
            config.compute,
            expected_masks(config),
        )

    def end_epoch(self) -> None:
        """Resets the sums for the next epoch."""
        self.epoch_nll = self.epoch_seconds = 0.0


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
_KEPT = ("step", "history", "epoch_nll", "epoch_seconds", "seconds")
# Settings that may change between two starts, as every checkpoint records them: the kernel
# may differ between machines, and no epoch depends on how many are to come.
_MAY_CHANGE = {"kernel": defaults()["kernel"], "epochs": 0}


def new_run(
    config: Config, corpus: Corpus, data_parallel: int = 1, resident: bool | None = None
) -> Run:
    """A run before its first window, its batch's streams split over `data_parallel` devices.

    `resident` is as for `WindowFeed`.

    Raises:
      ValueError: the text is too short, or there are fewer devices than that, or some process
        would have none of them.
    """
    text = training_windows(config, corpus)
    devices = jax.devices()[:data_parallel]
    if data_parallel > len(devices):
        raise ValueError(
            f"data_parallel={data_parallel}: there are {len(devices)} devices; give that or fewer"
        )
    processes = jax.process_count()
    if idle := processes - len({device.process_index for device in devices}):
        raise ValueError(
            f"data_parallel={data_parallel}: leaves {idle} of {processes} processes without a"
            f" device; give {len(jax.devices())}, or start fewer"
        )
    if data_parallel == 1:
        state = init_train_state(config, len(corpus.vocabulary))
        return Run(config, corpus, WindowFeed(text, resident=resident), state)
    mesh = make_mesh(devices, data_parallel)
    state = init_data_parallel(config, len(corpus.vocabulary), mesh)
    feed = WindowFeed(text, on_every_device(mesh), resident)
    return Run(config, corpus, feed, state, mesh=mesh)


def training_windows(config: Config, corpus: Corpus) -> TextWindows:
    """The windows of the training text, once the other texts are known to be long enough.

    Raises:
      ValueError: a text is too short.
    """
    for ids in (corpus.valid, corpus.test):
        count_predictions(ids)
    return TextWindows(corpus.train, config.train.batch_size, config.train.unroll)


def resume(run: RunT, workdir: Workdir, console: Console) -> RunT:
    """The run as of the newest intact checkpoint in the working directory, if there is one.

    Raises:
      ValueError: the checkpoint is of another configuration or text, or of more epochs than
        requested; every checkpoint is damaged; or the run is finished and has none.
    """

    def make_template(record: dict[str, Any]) -> Any:
        there = record.get("configs", [])  # older checkpoints lack it
        if there and [defaults() | flat | _MAY_CHANGE for flat in there] != _configs(run):
            raise ValueError(
                f"{workdir.path}: has checkpoints of another configuration; give the flags of that"
                " run, or name another --workdir"
            )
        if record["corpus_sha256"] != run.corpus.fingerprint:
            raise ValueError(
                f"{workdir.path}: holds a run on another text; name another --workdir, or give"
                " the text of that run"
            )
        return run.host_buffers(record["layout"]) if layout_differs(record) else run.state

    def layout_differs(record: dict[str, Any]) -> bool:
        return record.get("layout", run.layout) != run.layout

    restored = checkpoint.restore(workdir.checkpoints, make_template)
    if restored is None:
        if workdir.summary.exists():
            raise ValueError(
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
        raise ValueError(
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


def first_problem(nll: np.ndarray, params_finite: bool) -> tuple[int, str] | None:
    """The first bad window of a chunk, and what is wrong with its loss or the parameters."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.exp(nll))
    if not finite.all():
        bad = int(np.argmin(finite))
        return bad, f"the loss became {nll[bad]:.4g}"
    if not params_finite:
        return len(nll) - 1, "a parameter became infinite or NaN"
    return None


def describe_window(run: Run, window: int) -> str:
    """Names a window by step and epoch; `window` counts from the last one trained on."""
    epoch, before = run.position
    return f"step {run.step + window + 1} (epoch {epoch + 1}, window {before + window + 1})"


def _check_finite(run: Run, nll: np.ndarray, params_finite: bool) -> None:
    found = first_problem(nll, params_finite)
    if found is not None:
        bad, problem = found
        raise NonFiniteLossError(f"{problem} at {describe_window(run, bad)}; {DIVERGENCE_REMEDY}")


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


def on_every_device(mesh: Mesh) -> NamedSharding:
    """A sharding that replicates over all devices of a mesh, other hosts' included."""
    return NamedSharding(mesh, PartitionSpec())


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
    usual = {}

    def receive(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, usual[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        usual[number] = signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
