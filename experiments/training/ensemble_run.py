"""A run of many models side by side; those that diverge are left out from then on."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from rich.console import Console

from experiments.training import resumption
from experiments.training.curves import averages
from experiments.training.divergence import NonFiniteLossError, first_problem
from experiments.training.journal import Journal
from experiments.training.run import (
    EVALUATION_STREAMS,
    Run,
    decided_rates,
    names_of,
    next_windows,
    rate_of_epoch,
    training_windows,
    windows_trained,
    words_per_second,
)
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_model
from zaremba_jax.array_types import ModelParams, TrainState, WindowStatistics
from zaremba_jax.config import Config, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.loader import WindowLoader, fits
from zaremba_jax.ensemble import MemberNLL
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity
from zaremba_jax.model import Model
from zaremba_jax.parallel.members import (
    chunk_members,
    finite_members,
    init_chunks,
    members_nll,
    members_on_device,
    members_that_fit,
    train_members,
)
from zaremba_jax.parallel.mesh import MEMBER, REPLICATED, fetch
from zaremba_jax.train import better_of


@dataclasses.dataclass
class EnsembleRun(Run):
    """A run of members that are alike except in seed, learning rate and regularizer strengths."""

    all_configs: list[Config]  # one per member
    corpus: Corpus
    windows: WindowLoader
    state: tuple[TrainState, ...]  # the stacked states of each chunk of members
    mesh: Mesh  # of all devices
    console: Console  # gets a line for each member that diverges
    kernel: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: Config = dataclasses.field(init=False)
    journal: Journal = dataclasses.field(init=False)

    def __post_init__(self):
        self.config = self.all_configs[0]
        self.journal = Journal([0.0] * self.members)

    @property
    def step(self) -> int:
        return windows_trained(self.state[0])

    @property
    def members(self) -> int:
        """The number of members, including those that diverged."""
        return len(self.all_configs)

    @property
    def live(self) -> list[int]:
        """The members that have not diverged."""
        return self.journal.live

    def seed(self, member: int) -> int:
        """The seed that decides a member's initial values and masks."""
        return self.all_configs[member].seed

    @property
    def chunk_indices(self) -> list[np.ndarray]:
        """Which members are in each chunk."""
        return chunk_members(self.members, [len(state.step) for state in self.state])

    @functools.cached_property
    def rates(self) -> dict[str, np.ndarray]:
        """The settings other than the seed in which members differ, one value per member."""
        settings = [to_dict(override(config, seed=0)) for config in self.all_configs]
        return {
            name: np.array([of_member[name] for of_member in settings], np.float32)
            for name, value in settings[0].items()
            if any(of_member[name] != value for of_member in settings)
        }

    @property
    def models_on_device(self) -> tuple[int, int]:
        devices = self.mesh.shape[MEMBER]
        chunks = [len(state.step) // devices for state in self.state]
        return sum(chunks), max(chunks)

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def are_alike(self) -> bool:
        return not self.rates

    @property
    def layout(self) -> dict[str, Any]:
        """The members in each chunk and the streams of a batch, padding included."""
        shapes = [state.rnn_state[0].hidden.shape for state in self.state]
        return {"chunks": [shape[0] for shape in shapes], "streams": shapes[0][1]}

    def cut(self, stored: Any) -> tuple[TrainState, ...]:
        """As for `Run`; the last member pads the last chunk."""
        together = jax.tree.map(lambda *chunks: np.concatenate(chunks), *stored)
        return tuple(
            resumption.cut(
                jax.tree.map(lambda x, chosen=chosen: x[chosen], together),
                state,
                self.config.train.batch_size,
            )
            for chosen, state in zip(self.chunk_indices, self.state, strict=True)
        )

    def metrics(self, epoch: int, windows: int) -> dict[str, Any]:
        """As for `Run`: means over members, and the training perplexity of each."""
        perplexities = self.journal.train_perplexities(windows)
        rates = [rate_of_epoch(self, member, epoch) for member in range(self.members)]
        return {
            "epoch": epoch,
            **({"learning_rate": rates[0]} if len(set(rates)) == 1 else {"learning_rates": rates}),
            "train_perplexity": float(np.mean(list(perplexities.values()))),
            "train_perplexities": self._of_members(perplexities),
            "words_per_second": words_per_second(self, windows),
        }

    def train(self, count: int) -> tuple[dict[int, float], dict[str, float]]:
        """As for `Run`; a member that diverges is excluded from then on."""
        first, per_epoch = self.step, len(self.windows)
        stats, finite = self._train_chunks(next_windows(self, count))
        nll = np.asarray(stats.nll)
        for member in self.live:
            if problem := first_problem(nll[member], finite[member], first, per_epoch):
                self._exclude(member, problem)
        of_live = jax.tree.map(lambda x: x[self.live], stats)
        return {member: float(nll[member].sum()) for member in self.live}, averages(of_live)

    def _train_chunks(self, windows: jax.Array) -> tuple[WindowStatistics, np.ndarray]:
        """Statistics of each window and whether all parameters are finite, row by member."""
        states, stats, finite = [], [], []
        rates = self.rates | decided_rates(self, range(self.members))
        for state, members in zip(self.state, self.chunk_indices, strict=True):
            state, of_chunk = train_members(
                self.config,
                state,
                windows,
                self.mesh,
                {name: values[members] for name, values in rates.items()},
                windows_per_epoch=len(self.windows),
            )
            self.windows.prefetch()
            states.append(state)
            stats.append(jax.tree.map(fetch, of_chunk))
            finite.append(fetch(finite_members(state.params)))
        self.state = tuple(states)
        together = jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *stats)
        return together, np.concatenate(finite)

    def _exclude(self, member: int, reason: str) -> None:
        self.journal.exclude(member, reason)
        seed = f" (seed {self.seed(member)})" if self.are_alike else ""
        message = f"{names_of(self, [member])}{seed}: {reason}"
        if not self.live:
            raise NonFiniteLossError(
                f"{message}, the last of {self.members} members",
                {self.seed(index): self.journal.excluded[index] for index in range(self.members)},
            )
        self.console.print(f"{message}; excluded from here on", soft_wrap=True)

    def nll(self, ids: np.ndarray) -> MemberNLL:
        """Nats of every token of a text but the first, for every member, even excluded ones."""
        return self._nll([state.result for state in self.state], ids, streams=1)

    def _nll(self, params: list[ModelParams], ids: np.ndarray, streams: int) -> MemberNLL:
        """`nll` by the parameters of each chunk."""
        words = self.corpus.vocabulary
        chunks = [Model(of_chunk, self.config, words).predictor for of_chunk in params]
        nll = [members_nll(predictor, ids, streams, self.mesh) for predictor in chunks]
        return np.concatenate(nll)[: self.members]

    def estimate(self) -> dict[str, Any]:
        """As for `Run`: mean, best, worst, and each member's.

        A member whose perplexity is not finite is excluded.
        """
        params = [state.model for state in self.state]
        nll = self._nll(params, self.corpus.valid, EVALUATION_STREAMS)
        estimates = {member: perplexity(nll[member]) for member in self.live}
        for member, estimate in estimates.items():
            if not np.isfinite(estimate):
                self._exclude(member, f"the validation perplexity became {estimate}")
        live = {member: estimates[member] for member in self.live}
        return {
            "valid_perplexity_estimate": float(np.mean(list(live.values()))),
            "valid_perplexity_best": min(live.values()),
            "valid_perplexity_worst": max(live.values()),
            "valid_perplexity_estimates": self._of_members(live),
        }

    def keep_best(self) -> None:
        improved = np.array([self.journal.has_improved(member) for member in range(self.members)])
        self.state = tuple(
            dataclasses.replace(state, best=better_of(state.model, state.best, improved[members]))
            for state, members in zip(self.state, self.chunk_indices, strict=True)
        )

    def model(self, member: int | None = None) -> Model:
        """A member's model, with its own seed and rates; by default the first live member's."""
        member = self.live[0] if member is None else member
        chunk, row = divmod(member, len(self.state[0].step))
        params = jax.tree.map(lambda x: fetch(x[row]), self.state[chunk].result)
        return Model(params, self.all_configs[member], self.corpus.vocabulary)

    def write_models(self, workdir: Workdir) -> None:
        """As for `Run`: a file for each member."""
        workdir.require_held()
        workdir.members.mkdir(exist_ok=True)
        for member in range(self.members):
            path = workdir.member(self.seed(member))
            if member in self.live:
                write_model(path, self.model(member))
            else:
                path.unlink(missing_ok=True)  # left by a run of fewer epochs

    def _of_members(self, live: dict[int, float]) -> list[float | None]:
        """One value per member, None for those that diverged."""
        return [live.get(member) for member in range(self.members)]


def default_at_once(
    config: Config, corpus: Corpus, members: int, mesh: Mesh, resident: bool | None = None
) -> int:
    """How many members a device trains together: as many as its memory allows; on a CPU, one.

    Members have separate weights, so a CPU that one keeps busy gains nothing from more. `resident`
    is as for `new_ensemble`.
    """
    device = mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        return 1
    text = training_windows(config, corpus).nbytes
    stays = fits(text, device) if resident is None else resident
    left, on_device = memory - text if stays else memory, members_on_device(members, mesh)
    return members_that_fit(config, len(corpus.vocabulary), on_device, left)


def with_seeds(config: Config, count: int) -> list[Config]:
    """Copies of a configuration with `count` consecutive seeds, its own first."""
    return [override(config, seed=config.seed + offset) for offset in range(count)]


def refuse_patience(config: Config) -> None:
    """Refuses a run of many models that are to end as their estimates decide.

    Raises:
      InputError: `patience` is set.
    """
    if config.train.patience:
        raise InputError(
            f"patience={config.train.patience}: models that train side by side end together; leave"
            " it out, or train one at a time; --keep=best ends with the best epoch of each"
        )


def new_ensemble(
    configs: list[Config],
    corpus: Corpus,
    at_once: int,
    mesh: Mesh,
    console: Console,
    resident: bool | None = None,
    params: ModelParams | None = None,
) -> EnsembleRun:
    """An ensemble before its first window; arguments as `EnsembleRun`'s and `WindowLoader`'s.

    A device trains `at_once` members together, which all go on from `params` if they are given.

    Raises:
      InputError: as for `refuse_patience`, or the text is too short.
    """
    config = configs[0]
    refuse_patience(config)
    text = training_windows(config, corpus)
    seeds = [config.seed for config in configs]
    states = init_chunks(config, len(corpus.vocabulary), seeds, at_once, mesh, params)
    loader = WindowLoader(text, NamedSharding(mesh, REPLICATED), resident)
    return EnsembleRun(configs, corpus, loader, states, mesh, console)
