"""One model in training: its state on the device, and what the host keeps beside it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.training import resharding
from experiments.training.run_folder import Workdir, write_model
from experiments.training.tensorboard import Gates, averages, gate_activations
from zaremba_jax.array_types import ModelParams, Windows
from zaremba_jax.config import Config
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.loader import WindowLoader
from zaremba_jax.data.windows import TextWindows
from zaremba_jax.ensemble import fetch, init_data_parallel, make_mesh, train_data_parallel
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import count_predictions, perplexity, text_nll
from zaremba_jax.interop.model_file import Model
from zaremba_jax.optimizer import learning_rate
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.train import all_finite, init_train_state, train_windows

EVALUATION_STREAMS = 20  # of the estimate after each epoch
DIVERGENCE_REMEDY = (
    "the checkpoints before it are kept; try a lower --learning_rate or --clip_norm, in another"
    " --workdir"
)
_KEPT = ("step", "history", "epoch_nll", "epoch_seconds", "seconds")


class NonFiniteLossError(ArithmeticError):
    """A loss, a parameter or the validation perplexity became infinite or NaN."""


@dataclasses.dataclass
class Run:
    """A run and its progress: the state on the device, and what the host keeps beside it."""

    config: Config
    corpus: Corpus
    windows: WindowLoader
    state: Any  # a `TrainState`
    step: int = 0  # windows trained on, as in `state`
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # one per epoch
    epoch_nll: Any = 0.0  # sum of the mean nats per token of this epoch's windows so far
    epoch_seconds: float = 0.0  # spent training in this epoch so far
    seconds: float = 0.0  # spent training and evaluating since the run first began
    mesh: Mesh | None = None  # of the devices that share the batch, if there are several
    record_grad_norm: bool = False  # whether to fill `chunk_statistics`, those of the last chunk
    chunk_statistics: dict[str, float] = dataclasses.field(default_factory=dict)
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

    def host_buffers(self, saved: dict[str, Any]) -> Any:
        """Host buffers for a state that was saved with another layout."""
        return resharding.host_buffers(self.state, (), saved["streams"])

    def cut(self, stored: Any) -> Any:
        """The state read into `host_buffers`, in this run's layout, on its devices."""
        return resharding.cut(stored, self.state, self.config.train.batch_size)

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
            self.state, stats = train_windows(
                self.config,
                self.state,
                chunk,
                windows_per_epoch=per_epoch,
                record_grad_norm=self.record_grad_norm,
            )
        else:
            self.state, stats = train_data_parallel(
                self.config, self.state, chunk, self.mesh, per_epoch, self.record_grad_norm
            )
        self.windows.prefetch()
        stats = np.asarray(stats, np.float64)
        nll = stats[..., 0] if self.record_grad_norm else stats
        if problem := first_problem(nll, bool(all_finite(self.state.params))):
            where = describe_window(self, problem[0])
            raise NonFiniteLossError(f"{problem[1]} at {where}; {DIVERGENCE_REMEDY}")
        self.epoch_nll += float(nll.sum())
        self.chunk_statistics = averages(stats) if self.record_grad_norm else {}

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


def new_run(
    config: Config, corpus: Corpus, data_parallel: int = 1, resident: bool | None = None
) -> Run:
    """A run before its first window, its batch's streams split over `data_parallel` devices.

    `resident` is as for `WindowLoader`.

    Raises:
      InputError: the text is too short, or there are fewer devices than that, or some process
        would have none of them.
    """
    text = training_windows(config, corpus)
    devices = jax.devices()[:data_parallel]
    if data_parallel > len(devices):
        raise InputError(
            f"data_parallel={data_parallel}: there are {len(devices)} devices; give that or fewer"
        )
    processes = jax.process_count()
    if idle := processes - len({device.process_index for device in devices}):
        raise InputError(
            f"data_parallel={data_parallel}: leaves {idle} of {processes} processes without a"
            f" device; give {len(jax.devices())}, or start fewer"
        )
    if data_parallel == 1:
        state = init_train_state(config, len(corpus.vocabulary))
        return Run(config, corpus, WindowLoader(text, resident=resident), state)
    mesh = make_mesh(devices, data_parallel)
    state = init_data_parallel(config, len(corpus.vocabulary), mesh)
    loader = WindowLoader(text, on_every_device(mesh), resident)
    return Run(config, corpus, loader, state, mesh=mesh)


def training_windows(config: Config, corpus: Corpus) -> TextWindows:
    """The windows of the training text, once the other texts are known to be long enough.

    Raises:
      InputError: a text is too short.
    """
    for ids in (corpus.valid, corpus.test):
        count_predictions(ids)
    return TextWindows(corpus.train, config.train.batch_size, config.train.unroll)


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
    epoch, offset = run.position
    return f"step {run.step + window + 1} (epoch {epoch + 1}, window {offset + window + 1})"


def on_every_device(mesh: Mesh) -> NamedSharding:
    """A sharding that replicates over all devices of a mesh, other hosts' included."""
    return NamedSharding(mesh, PartitionSpec())
