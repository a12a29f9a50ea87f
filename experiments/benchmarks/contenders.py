"""Who trains in the benchmark: this library in several ways, and its peers.

Every contender trains the same network on the same windows: dropout at all L + 1
sites, the loss summed over time and averaged over the batch, the gradient clipped by
its global norm, SGD. `BUILDERS` holds them by name; a builder returns a turn that trains
on all windows once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.jax_peers import build_cudnn, build_linen, build_nnx, check_cudnn
from experiments.benchmarks.torch_peer import build_torch, check_torch
from experiments.training.environment import is_installed
from experiments.training.kernel_choice import choice_for, local_workload
from experiments.training.turns import Turn
from zaremba_jax.config import Config, ModelConfig, Precision, RegularizerConfig, override
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError
from zaremba_jax.parallel.members import init_chunks, train_members
from zaremba_jax.parallel.mesh import make_mesh
from zaremba_jax.train import init_train_state, train_windows

OURS = "zaremba_jax"


def has_papers_layout(config: Config) -> bool:
    """Whether cell, regularizers, layout and update are the paper's, whatever sizes and rates."""
    model, regularizers = config.model, config.regularizers
    plain = ModelConfig(
        layers=model.layers, hidden_size=model.hidden_size, init_scale=model.init_scale
    )
    alike = (model, regularizers) == (plain, RegularizerConfig(dropout=regularizers.dropout))
    return alike and config.train.optimizer == "sgd" and not config.train.averages


def sample_windows(config: Config, count: int) -> np.ndarray:
    """Random tokens, int32 [count, unroll + 1, batch]."""
    shape = (count, config.train.unroll + 1, config.train.batch_size)
    return np.random.default_rng(0).integers(0, PTB_VOCABULARY_SIZE, shape).astype(np.int32)


def build_ours(config: Config, windows: np.ndarray, **changes: str) -> Turn:
    """This library, as `experiments.ptb` runs it with these changes of the configuration."""
    config, text = override(config, **changes), jnp.asarray(windows)
    state = init_train_state(config, PTB_VOCABULARY_SIZE)

    def train() -> None:
        nonlocal state
        state, nll = train_windows(config, state, text)
        jax.block_until_ready((state, nll))

    return train


def build_members(config: Config, windows: np.ndarray, members: int, at_once: int) -> Turn:
    """An ensemble, as `experiments.ensemble` trains it on one device, `at_once` at a time."""
    mesh, text = make_mesh(jax.devices()[:1]), jnp.asarray(windows)
    states = list(init_chunks(config, PTB_VOCABULARY_SIZE, range(members), at_once, mesh))

    def train() -> None:
        for index, state in enumerate(states):
            states[index], _ = train_members(config, state, text, mesh)
        jax.block_until_ready(states)

    return train


def check_pallas(config: Config) -> None:
    """Refuses what would run without the Pallas kernels."""
    if reason := choice_for(local_workload(config, PTB_VOCABULARY_SIZE), "pallas").why_not:
        raise InputError(f"--peers=pallas: {reason}; leave it out here")


BUILDERS: dict[str, Callable[..., Turn]] = {
    OURS: build_ours,
    # The readable reference: layers by `lax.scan`, differentiated by jax.
    "scan": functools.partial(build_ours, kernel="scan"),
    "pallas": functools.partial(build_ours, kernel="pallas"),
    "flax": build_linen,
    "nnx": build_nnx,
    "torch": build_torch,
    "torch-compile": functools.partial(build_torch, compiled=True),
    "cudnn": build_cudnn,
}

# Checks whether a contender can run, before it is built.
CHECKS: dict[str, Callable[[Config], None]] = {
    "torch": check_torch,
    "torch-compile": check_torch,
    "cudnn": check_cudnn,
    "pallas": check_pallas,
}


class Contender(NamedTuple):
    """Who trains what, how many models, and how many at once; only ours trains several."""

    builder: str
    config: Config
    members: int = 1
    at_once: int = 1

    @property
    def name(self) -> str:
        """As in `--peers`, but always with the precision; and the members, if several."""
        name = f"{self.builder}:{self.config.compute.precision}"
        return name if self.members == 1 else f"{name} × {self.members}, {self.at_once} at once"

    @property
    def tokens(self) -> int:
        """How many all members together read in a step."""
        return self.members * self.config.train.batch_size * self.config.train.unroll

    def build(self, windows: int) -> Turn:
        """Returns a turn that trains on this many windows."""
        text = sample_windows(self.config, windows)
        if self.members > 1:
            return build_members(self.config, text, self.members, self.at_once)
        return BUILDERS[self.builder](self.config, text)


def doublings(members: int) -> list[int]:
    """Numbers of members to train at once: one, twice as many each time, and all of them."""
    return [2**power for power in range(members.bit_length()) if 2**power < members] + [members]


def choose_contenders(config: Config, peers: Sequence[str], members: int = 1) -> list[Contender]:
    """Ours first, then its ensembles of up to `members` if there are several, then the peers.

    `peers` are names of `BUILDERS`, each with `:float32` or `:bfloat16` to override the precision.

    Raises:
      InputError: a peer or its precision is unknown or cannot run here, or one is named
        twice.
    """
    chosen = [Contender(OURS, config)]
    if members > 1:
        chosen += [Contender(OURS, config, members, at_once) for at_once in doublings(members)]
    chosen += [_peer(config, name) for name in peers]
    names = [contender.name for contender in chosen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--peers: {', '.join(twice)} is named twice; name each once")
    return chosen


def _peer(config: Config, name: str) -> Contender:
    builder, _, precision = name.partition(":")
    precision = precision or config.compute.precision
    for value, choices in ((builder, tuple(BUILDERS)), (precision, get_args(Precision))):
        if value not in choices:
            raise InputError(f"--peers={name}: {value!r} is not one of {', '.join(choices)}")
    if builder not in (OURS, "scan", "pallas") and not has_papers_layout(config):
        raise InputError(
            f"--peers={name}: has only the paper's model, LSTMs with dropout; leave it out,"
            " or the flags of other cells, regularizers, optimizers and averages"
        )
    config = override(config, precision=precision)
    if builder in CHECKS:
        CHECKS[builder](config)
    return Contender(builder, config)


def default_peers(config: Config) -> list[str]:
    """Those that may run here; ours, torch and pallas in the other precision too."""
    (other,) = set(get_args(Precision)) - {config.compute.precision}
    peers = ["scan", f"{OURS}:{other}"]
    if has_papers_layout(config):
        peers[1:1] = ["flax", "nnx"]
        if is_installed("torch"):
            peers += ["torch", f"torch:{other}"]
        if jax.default_backend() == "gpu":
            peers.append("cudnn:float32")
    for precision in (config.compute.precision, other):
        workload = local_workload(override(config, precision=precision), PTB_VOCABULARY_SIZE)
        if choice_for(workload, "pallas").why_not is None:
            peers.append(f"pallas:{precision}")
    return peers
