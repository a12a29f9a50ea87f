"""Delayed recall: the first symbol of a sequence has to be named k steps later.

This turns figures 2 and 3 of Zaremba et al. (2014) into a task: the steps in between are
noise of the same symbols, so that a network can answer only from its memory.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float

from experiments.ablations.methods import member_rates
from experiments.ablations.parts import Part
from zaremba_jax.array_types import CellName, Key, Masks, ModelParams, Scalar, Step, Tokens
from zaremba_jax.config import Config, override
from zaremba_jax.model import Predictor, apply, init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import Rates, sample_masks
from zaremba_jax.rnn import zero_state

TASK = "memory"
SYMBOLS = 8
QUESTION = SYMBOLS  # the token after which the symbol has to be named
VOCABULARY_SIZE = SYMBOLS + 1
CHUNKS = 10  # parts of training, after each of which the host reports
TEST_SEQUENCES = 2000

# The settings that have the task's rate.
METHODS = {
    "no dropout": (),
    "ordinary dropout": ("dropout", "hidden_dropout"),
    "non-recurrent dropout": ("dropout",),
}
# Settings with which each cell learns the task without dropout.
SETTINGS: dict[CellName, dict[str, Any]] = {
    "tanh": {"hidden_size": 128, "init_scale": 0.1, "learning_rate": 0.003},
    "lstm": {"hidden_size": 64, "init_scale": 0.3, "learning_rate": 0.01},
}


class Sequences(NamedTuple):
    """What is read, what has to be named, and where it is asked for."""

    tokens: Tokens
    targets: Tokens  # the first symbol, at every step
    asked: Bool[Array, "time batch"]


@struct.dataclass
class Learner:
    """A network while it learns the task."""

    params: ModelParams
    opt_state: optax.OptState
    step: Step
    key: Key


def task_config(cell: CellName, lags: int, **changes: int | float) -> Config:
    """One layer that reads whole sequences; both dropouts on, at rates that are given later."""
    settings = {"layers": 1, "batch_size": 32, "clip_norm": 1.0, "unroll": lags + 1}
    settings |= {"dropout": 0.5, "hidden_dropout": 0.5}
    return override(QUICK, cell=cell, **(settings | SETTINGS[cell] | changes))


def sample_sequences(lags: int, batch_size: int, *, key: Key) -> Sequences:
    """Draws sequences of lags + 1 steps; the question comes at lag k with chance 1 / (k + 1).

    Every order of magnitude of the lag is thus asked for about equally often.
    """
    noise_key, ask_key = jax.random.split(key)
    shape = (lags + 1, batch_size)
    symbols = jax.random.randint(noise_key, shape, 0, SYMBOLS)
    lag = jnp.arange(lags + 1, dtype=jnp.float32)[:, None]
    asked = jax.random.bernoulli(ask_key, 1 / (lag + 1), shape) & (lag > 0)
    tokens = jnp.where(asked, QUESTION, symbols)
    return Sequences(tokens, jnp.broadcast_to(symbols[:1], shape), asked)


def answer_loss(params: ModelParams, sequences: Sequences, masks: Masks | None) -> Scalar:
    """Mean nats of the answers; nothing else counts."""
    predictor = Predictor(params, masks)
    state = predictor.zero_state(sequences.tokens.shape[1])
    nll, _ = predictor.token_nll(sequences.tokens, sequences.targets, state)
    return jnp.where(sequences.asked, nll, 0).sum() / sequences.asked.sum(dtype=nll.dtype)


def init_learner(config: Config, seed: jax.Array) -> Learner:
    """An untrained network; the seed decides its initial values, masks and sequences."""
    init_key, key = jax.random.split(jax.random.key(seed))
    params: Any = init_params(config.model, VOCABULARY_SIZE, key=init_key)
    opt_state = _optimizer(config).init(params)
    return Learner(params, opt_state, jnp.zeros((), jnp.int32), key)


@functools.partial(jax.jit, static_argnames=("config", "count"))
def learn(config: Config, learners: Learner, rates: Rates, count: int) -> tuple[Learner, Array]:
    """Trains each learner at its own rates on `count` fresh batches; also returns their losses."""

    def step(rates: Rates, learner: Learner, _: None) -> tuple[Learner, Scalar]:
        key = jax.random.fold_in(learner.key, learner.step)
        data_key, mask_key = jax.random.split(key)
        lags, batch_size = config.train.unroll - 1, config.train.batch_size
        sequences = sample_sequences(lags, batch_size, key=data_key)
        masks = sample_masks(config, rates, sequences.tokens, VOCABULARY_SIZE, key=mask_key)
        params: Any = learner.params
        loss, gradient = jax.value_and_grad(answer_loss)(params, sequences, masks)
        updates, opt_state = _optimizer(config).update(gradient, learner.opt_state, params)
        params = optax.apply_updates(params, updates)
        return Learner(params, opt_state, learner.step + 1, learner.key), loss

    def train(learner: Learner, rates: Rates) -> tuple[Learner, Array]:
        return jax.lax.scan(functools.partial(step, rates), learner, None, count)

    return jax.vmap(train)(learners, rates)


@jax.jit
def right_answers(params: ModelParams, sequences: Sequences) -> Bool[Array, "members time batch"]:
    """Where each member, with dropout off, names the symbol."""

    def right(params: ModelParams) -> Array:
        state = zero_state(params.layers, sequences.tokens.shape[1])
        logits, _ = apply(params, sequences.tokens, state)
        return logits.argmax(axis=-1) == sequences.targets

    return jax.vmap(right)(params)


def memory_parts(
    cells: Sequence[CellName], *, rate: float, lags: int, steps: int, seeds: int
) -> list[Part]:
    """A part for each cell with settings, by `compare_memories`; none if there are no `steps`."""
    settings = {"rate": rate, "lags": lags, "steps": steps, "seeds": seeds}
    return [
        Part(TASK, cell, CHUNKS, functools.partial(compare_memories, cell, **settings))
        for cell in (SETTINGS if steps else ())
        if cell in cells
    ]


def compare_memories(
    cell: CellName,
    *,
    rate: float,
    lags: int,
    steps: int,
    seeds: int,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Trains all methods and seeds side by side and tests them on fresh sequences.

    Training takes `whole_chunks(steps)` batches.

    Returns:
      `bins`, the first and last lag of each; by method, the `accuracy` of each seed in each
      bin, and each seed's `nats` of an answer in the last chunk of training, dropout on.
    """
    config = task_config(cell, lags)
    rates = member_rates([dict.fromkeys(on, rate) for on in METHODS.values()], seeds)
    numbers = jnp.tile(jnp.arange(seeds), len(METHODS))
    learners = jax.vmap(functools.partial(init_learner, config))(numbers)
    count = whole_chunks(steps) // CHUNKS
    losses = np.zeros((len(numbers), count))
    for chunk in range(CHUNKS):
        learners, loss = learn(config, learners, rates, count)
        losses = np.asarray(loss, np.float64)
        on_progress(f"memory: {cell}, step {count * (chunk + 1)}")
    bins = lag_bins(lags)
    shares, nats = _accuracy(learners.params, lags, bins).round(4), losses.mean(axis=1).round(4)
    by_method = zip(*(np.split(x, len(METHODS)) for x in (shares, nats)), strict=True)
    return {
        "bins": bins,
        "methods": {
            name: {"accuracy": accuracy.tolist(), "nats": nats.tolist()}
            for name, (accuracy, nats) in zip(METHODS, by_method, strict=True)
        },
    }


def _accuracy(
    params: ModelParams, lags: int, bins: list[tuple[int, int]]
) -> Float[np.ndarray, "members bins"]:
    """The share of right answers to fresh sequences."""
    sequences = sample_sequences(lags, TEST_SEQUENCES, key=jax.random.key(2**32 - 1))
    asked = np.asarray(sequences.asked)
    right = np.asarray(right_answers(params, sequences)) & asked
    shares = [right[:, a : b + 1].sum((1, 2)) / asked[a : b + 1].sum() for a, b in bins]
    return np.stack(shares, axis=-1)


def whole_chunks(steps: int) -> int:
    """The number of batches, rounded up to a multiple of `CHUNKS`."""
    return -(-steps // CHUNKS) * CHUNKS


def lag_bins(lags: int) -> list[tuple[int, int]]:
    """First and last lag of bins of about equal width on a logarithmic scale."""
    edges = sorted({round(edge) for edge in np.geomspace(1, lags + 1, 12).tolist()})
    return [(start, end - 1) for start, end in itertools.pairwise(edges)]


def _optimizer(config: Config) -> optax.GradientTransformation:
    clip, rate = config.train.clip_norm, config.train.learning_rate
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))
