"""A run of one model, its batch on one device or spread over several."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from experiments.training import resumption
from experiments.training.curves import averages
from experiments.training.divergence import NonFiniteLossError, first_problem
from experiments.training.journal import Journal
from experiments.training.run import (
    EVALUATION_STREAMS,
    Run,
    decided_rates,
    next_windows,
    position,
    rate_of_epoch,
    training_windows,
    windows_trained,
    words_per_second,
)
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_model
from zaremba_jax.array_types import ModelParams, TrainState
from zaremba_jax.config import Config
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.loader import WindowLoader
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.model import Model
from zaremba_jax.parallel.data_parallel import init_data_parallel, train_data_parallel
from zaremba_jax.parallel.mesh import REPLICATED, fetch, make_mesh
from zaremba_jax.train import all_finite, better_of, init_train_state, train_windows


@dataclasses.dataclass
class SingleRun(Run):
    """A run of one model; `mesh` is of the devices that share the batch, if several do."""

    config: Config
    corpus: Corpus
    windows: WindowLoader
    state: TrainState
    mesh: Mesh | None = None
    journal: Journal = dataclasses.field(default_factory=lambda: Journal([0.0]))
    kernel: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.all_configs = [self.config]

    @property
    def step(self) -> int:
        return windows_trained(self.state)

    @property
    def models_on_device(self) -> tuple[int, int]:
        return 1, 1

    @property
    def devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def are_alike(self) -> bool:
        return True

    @property
    def layout(self) -> dict[str, Any]:
        """The streams of the batch, padding included."""
        return {"streams": self.state.rnn_state[0].hidden.shape[0]}

    def cut(self, stored: Any) -> TrainState:
        return resumption.cut(stored, self.state, self.config.train.batch_size)

    def model(self) -> Model:
        return self._model(self.state.result)

    def _model(self, params: ModelParams) -> Model:
        """The model of parameters of the state, on a single device."""
        if self.mesh is not None:
            params = jax.tree.map(lambda x: jnp.asarray(fetch(x)), params)
        return Model(params, self.config, self.corpus.vocabulary)

    def keep_best(self) -> None:
        assert self.state.best is not None
        is_better = np.asarray(self.journal.has_improved(0))
        best = better_of(self.state.model, self.state.best, is_better)
        self.state = dataclasses.replace(self.state, best=best)

    def write_models(self, workdir: Workdir) -> None:
        workdir.require_held()
        write_model(workdir.model, self.model())

    def train(self, count: int) -> tuple[dict[int, float], dict[str, float]]:
        first, per_epoch = self.step, len(self.windows)
        chunk = next_windows(self, count)
        rates = {name: values[0] for name, values in decided_rates(self, [0]).items()} or None
        if self.mesh is None:
            self.state, stats = train_windows(
                self.config, self.state, chunk, rates, windows_per_epoch=per_epoch
            )
        else:
            self.state, stats = train_data_parallel(
                self.config, self.state, chunk, self.mesh, rates, per_epoch
            )
        self.windows.prefetch()
        stats = jax.tree.map(lambda x: np.asarray(x, np.float64), stats)
        finite = bool(all_finite(self.state.params))
        if problem := first_problem(stats.nll, finite, first, per_epoch):
            raise NonFiniteLossError(problem, {self.config.seed: problem})
        return {0: float(stats.nll.sum())}, averages(stats)

    def metrics(self, epoch: int, windows: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "learning_rate": rate_of_epoch(self, 0, epoch),
            "train_perplexity": self.journal.train_perplexities(windows)[0],
            "words_per_second": words_per_second(self, windows),
        }

    def nll(self, ids: np.ndarray) -> np.ndarray:
        """Nats [predictions] of every token of a text but the first."""
        return text_nll(self.model(), ids)

    def estimate(self) -> dict[str, Any]:
        model = self._model(self.state.model)
        estimate = perplexity(text_nll(model, self.corpus.valid, EVALUATION_STREAMS))
        if not np.isfinite(estimate):
            epoch, _ = position(self)
            problem = f"the validation perplexity became {estimate} after epoch {epoch}"
            raise NonFiniteLossError(problem, {self.config.seed: problem})
        return {"valid_perplexity_estimate": estimate}


def new_run(
    config: Config,
    corpus: Corpus,
    data_parallel: int = 1,
    resident: bool | None = None,
    params: ModelParams | None = None,
) -> SingleRun:
    """A run before its first window, its batch's streams split over `data_parallel` devices.

    `resident` is as for `WindowLoader`, `params` as for `init_train_state`.

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
        state = init_train_state(config, len(corpus.vocabulary), params=params)
        return SingleRun(config, corpus, WindowLoader(text, resident=resident), state)
    mesh = make_mesh(devices, data_parallel)
    state = init_data_parallel(config, len(corpus.vocabulary), mesh, params)
    loader = WindowLoader(text, NamedSharding(mesh, REPLICATED), resident)
    return SingleRun(config, corpus, loader, state, mesh)
