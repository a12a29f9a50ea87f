"""The host side of an ensemble: chunks, exclusion of members that diverge, finished runs."""

import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments.training import resharding
from experiments.training.loop import resume
from experiments.training.run_folder import Workdir, write_model
from experiments.training.single_run import (
    DIVERGENCE_REMEDY,
    EVALUATION_STREAMS,
    NonFiniteLossError,
    Run,
    describe_window,
    first_problem,
    new_run,
    on_every_device,
    training_windows,
)
from experiments.training.tensorboard import averages
from zaremba_jax.config import Config, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.loader import WindowLoader, fits
from zaremba_jax.ensemble import (
    MEMBER,
    MemberNLL,
    chunk_members,
    fetch,
    finite_members,
    init_chunks,
    members_nll,
    members_that_fit,
    train_members,
)
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity
from zaremba_jax.interop.model_file import Model
from zaremba_jax.optimizer import learning_rate
from zaremba_jax.regularizers import expected_masks


@dataclasses.dataclass
class EnsembleRun(Run):
    """Members that differ in seed and, in a sweep, in learning rate or regularizer strengths.

    `state` is a tuple of the stacked states of each chunk, `epoch_nll` a list over members,
    `config` that of the first member.
    """

    configs: list[Config] = dataclasses.field(default_factory=list)  # one per member
    excluded: dict[str, str] = dataclasses.field(default_factory=dict)  # reasons, by member
    console: Console = dataclasses.field(default_factory=Console)

    @property
    def all_configs(self) -> list[Config]:
        """The configuration of each member."""
        return self.configs

    @property
    def members(self) -> int:
        """The number of members, including those that diverged."""
        return len(self.configs)

    @property
    def chunk_indices(self) -> list[np.ndarray]:
        """Which members are in each chunk."""
        return chunk_members(self.members, [len(state.step) for state in self.state])

    @functools.cached_property
    def rates(self) -> dict[str, np.ndarray]:
        """The settings other than the seed in which members differ, one value per member."""
        settings = [to_dict(override(config, seed=0)) for config in self.configs]
        return {
            name: np.array([of_member[name] for of_member in settings], np.float32)
            for name, value in settings[0].items()
            if any(of_member[name] != value for of_member in settings)
        }

    @property
    def layout(self) -> dict[str, Any]:
        """The members in each chunk and the streams of a batch, padding included."""
        shapes = [state.rnn_state[0].hidden.shape for state in self.state]
        return {"chunks": [shape[0] for shape in shapes], "streams": shapes[0][1]}

    def host_buffers(self, saved: dict[str, Any]) -> Any:
        """Host buffers for states that were saved with another layout."""
        return tuple(
            resharding.host_buffers(self.state[0], (size,), saved["streams"])
            for size in saved["chunks"]
        )

    def cut(self, stored: Any) -> Any:
        """The states read into `host_buffers`, in this run's layout; the last member pads them."""
        together = jax.tree.map(lambda *chunks: np.concatenate(chunks), *stored)
        return tuple(
            resharding.cut(
                jax.tree.map(lambda x, chosen=chosen: x[chosen], together),
                state,
                self.config.train.batch_size,
            )
            for chosen, state in zip(self.chunk_indices, self.state, strict=True)
        )

    @property
    def kept(self) -> dict[str, Any]:
        """As for one model, with the excluded members."""
        return super().kept | {"excluded": self.excluded}

    @property
    def live(self) -> list[int]:
        """The members that have not diverged."""
        return [member for member in range(self.members) if str(member) not in self.excluded]

    def seed(self, member: int) -> int:
        """The seed that decides a member's initial values and masks."""
        return self.configs[member].seed

    def progress(self, epoch: int, windows: int) -> dict[str, Any]:
        """As for one model: means over members, and the training perplexity of each."""
        train = self.config.train
        words = self.members * windows * train.batch_size * train.unroll
        perplexities = {m: float(np.exp(self.epoch_nll[m] / windows)) for m in self.live}
        return {
            "epoch": epoch,
            "learning_rate": statistics.mean(
                learning_rate(self.configs[member].train, epoch) for member in self.live
            ),
            "train_perplexity": float(np.mean(list(perplexities.values()))),
            "train_perplexities": self._of_members(perplexities),
            "words_per_second": words / self.epoch_seconds,
        }

    def train(self, count: int) -> None:
        """Trains all members on the next windows; one that diverges is excluded from then on.

        Raises:
          NonFiniteLossError: no member is left.
        """
        assert self.mesh is not None
        states, losses, finite = [], [], []
        chunk, per_epoch = self.next_windows(count), len(self.windows)
        for state, members in zip(self.state, self.chunk_indices, strict=True):
            state, stats = train_members(
                self.config,
                state,
                chunk,
                self.mesh,
                {name: values[members] for name, values in self.rates.items()},
                windows_per_epoch=per_epoch,
                record_grad_norm=self.record_grad_norm,
            )
            self.windows.prefetch()
            states.append(state)
            losses.append(fetch(stats))
            finite.append(fetch(finite_members(state.params)))
        self.state = tuple(states)
        stats, all_finite = np.concatenate(losses).astype(np.float64), np.concatenate(finite)
        nll = stats[..., 0] if self.record_grad_norm else stats
        for member in self.live:
            problem = first_problem(nll[member], all_finite[member])
            if problem is not None:
                self._exclude(member, f"{problem[1]} at {describe_window(self, problem[0])}")
        for member in self.live:
            self.epoch_nll[member] += float(nll[member].sum())
        self.chunk_statistics = averages(stats[self.live]) if self.record_grad_norm else {}

    def _exclude(self, member: int, reason: str) -> None:
        self.excluded[str(member)] = reason
        self.epoch_nll[member] = 0.0
        message = f"member {member} (seed {self.seed(member)}): {reason}"
        if not self.live:
            raise NonFiniteLossError(
                f"{message}, the last of {self.members} members; {DIVERGENCE_REMEDY}"
            )
        self.console.print(f"{message}; excluded from here on", soft_wrap=True)

    def nll(self, ids: np.ndarray, streams: int = 1) -> MemberNLL:
        """Nats of every token of a text but the first, for every member, even excluded ones."""
        assert self.mesh is not None
        masks, compute = expected_masks(self.config), self.config.compute
        return np.concatenate(
            [
                members_nll(state.params, ids, streams, compute, masks, self.mesh)
                for state in self.state
            ]
        )[: self.members]

    def estimate(self) -> dict[str, Any]:
        """The validation perplexity by the faster protocol: mean, best, worst, and each member's.

        A member whose perplexity is not finite is excluded.

        Raises:
          NonFiniteLossError: no member is left.
        """
        nll = self.nll(self.corpus.valid, EVALUATION_STREAMS)
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

    def model(self, member: int | None = None) -> Model:
        """A member's model, with its own seed and rates; by default the first live member's."""
        member = self.live[0] if member is None else member
        chunk, row = divmod(member, len(self.state[0].step))
        params = jax.tree.map(lambda x: fetch(x[row]), self.state[chunk].params)
        return Model(params, self.configs[member], self.corpus.vocabulary)

    def write_models(self, workdir: Workdir) -> None:
        """Writes a file for each member that did not diverge."""
        for member in range(self.members):
            path = workdir.member(self.seed(member))
            if member in self.live:
                write_model(path, self.model(member))
            else:
                path.unlink(missing_ok=True)  # left by a run of fewer epochs

    def end_epoch(self) -> None:
        """Resets the sums for the next epoch."""
        self.epoch_nll, self.epoch_seconds = [0.0] * self.members, 0.0

    def _of_members(self, live: dict[int, float]) -> list[float | None]:
        """One value per member, None for those that diverged."""
        return [live.get(member) for member in range(self.members)]


def default_at_once(config: Config, corpus: Corpus, members: int, mesh: Mesh) -> int:
    """How many members a device trains together: as many as its memory allows; on a CPU, one.

    Members have separate weights, so a CPU that one keeps busy gains nothing from more.

    Raises:
      InputError: the text is too short.
    """
    device = mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if memory is None:
        return 1
    text = training_windows(config, corpus).nbytes
    left = memory - text if fits(text, device) else memory
    resident = -(-members // mesh.shape[MEMBER])
    return members_that_fit(config, len(corpus.vocabulary), resident, left)


def with_seeds(config: Config, count: int) -> list[Config]:
    """Copies of a configuration with `count` consecutive seeds, its own first.

    Raises:
      InputError: a seed would exceed the largest one.
    """
    return [override(config, seed=config.seed + offset) for offset in range(count)]


def new_ensemble(
    configs: list[Config],
    corpus: Corpus,
    at_once: int,
    mesh: Mesh,
    console: Console,
    resident: bool | None = None,
) -> EnsembleRun:
    """An ensemble before its first window.

    Args:
      configs: one per member, alike except in seed, learning rate and regularizer strengths.
      corpus: the texts.
      at_once: members that a device trains together.
      mesh: of all devices.
      console: where a line is printed for each member that diverges.
      resident: as for `WindowLoader`.

    Raises:
      InputError: the text is too short.
    """
    config = configs[0]
    text = training_windows(config, corpus)
    seeds = [config.seed for config in configs]
    return EnsembleRun(
        config,
        corpus,
        WindowLoader(text, on_every_device(mesh), resident),
        init_chunks(config, len(corpus.vocabulary), seeds, at_once, mesh),
        epoch_nll=[0.0] * len(configs),
        mesh=mesh,
        configs=configs,
        console=console,
    )


def read_run_config(workdir: Workdir) -> Config:
    """The configuration of the run of one model in a folder.

    Raises:
      InputError: the folder holds no such run.
    """
    try:
        config, more = workdir.read_config()
        if more:
            raise InputError(f"it has {', '.join(more)}, unlike a run of one model")
        return config
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{workdir.path}: holds no run of experiments.ptb ({error}); name the --workdir of one"
        ) from None


def load_finished_run(workdir: Workdir, corpus: Corpus) -> Run:
    """The finished run of one model in a folder.

    Raises:
      InputError: it was trained on another text, is unfinished, or lacks intact checkpoints.
    """
    config = read_run_config(workdir)
    if workdir.summary.exists() and not workdir.checkpoints.exists():
        raise InputError(
            f"{workdir.path}: holds the record of a finished run without its checkpoints; name the"
            " folder that it was trained in"
        )
    run = resume(new_run(config, corpus), workdir, Console(quiet=True))
    total = run.config.train.epochs * len(run.windows)
    if run.step < total:
        raise InputError(
            f"{workdir.path}: has trained on {run.step} of {total} windows; run its command"
            " again to finish it, or leave it out"
        )
    return run


def named_runs(paths: list[str]) -> list[Workdir]:
    """The folders named by `--from`.

    Raises:
      InputError: none is named, or one is named twice.
    """
    if not paths:
        raise InputError("--from: names no run; give folders, separated by commas")
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise InputError(f"--from={','.join(paths)}: a run is named twice; name each once")
    return [Workdir(path) for path in paths]
