"""One whole training step of the paper's model, in this library and in its peers.

Every contender trains the same network on the same windows: dropout at all L + 1
sites, the loss summed over time and averaged over the batch, the gradient clipped by
its global norm, SGD. `BUILDERS` holds them by name; a builder returns a function that
trains on all windows once and returns when the device is done.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.torch_contender import build_torch, check_torch
from experiments.training.kernel_choice import local_workload, why_not_pallas
from zaremba_jax.cells import drop
from zaremba_jax.config import Config, ModelConfig, RegularizerConfig, override
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.ensemble import init_chunks, make_mesh, train_members
from zaremba_jax.errors import InputError
from zaremba_jax.optimizer import make_optimizer
from zaremba_jax.regularizers import active_rates, sample_masks
from zaremba_jax.train import init_train_state, train_windows

Run = Callable[[], None]


def is_paper_model(config: Config) -> bool:
    """Whether cell, regularizers and layout are the paper's, whatever the sizes and rates."""
    model, regularizers = config.model, config.regularizers
    plain = ModelConfig(
        layers=model.layers, hidden_size=model.hidden_size, init_scale=model.init_scale
    )
    return (model, regularizers) == (plain, RegularizerConfig(dropout=regularizers.dropout))


def sample_windows(config: Config, count: int) -> np.ndarray:
    """Random tokens, int32 [count, unroll + 1, batch]."""
    shape = (count, config.train.unroll + 1, config.train.batch_size)
    return np.random.default_rng(0).integers(0, PTB_VOCABULARY_SIZE, shape).astype(np.int32)


def build_ours(config: Config, windows: np.ndarray) -> Run:
    """This library, as `experiments.ptb` runs it."""
    text = jnp.asarray(windows)
    state = init_train_state(config, PTB_VOCABULARY_SIZE)

    def run() -> None:
        nonlocal state
        state, nll = train_windows(config, state, text)
        jax.block_until_ready((state, nll))

    return run


def build_members(config: Config, windows: np.ndarray, members: int, at_once: int) -> Run:
    """An ensemble, as `experiments.ensemble` trains it on one device, `at_once` at a time."""
    mesh, text = make_mesh(jax.devices()[:1]), jnp.asarray(windows)
    states = list(init_chunks(config, PTB_VOCABULARY_SIZE, range(members), at_once, mesh))

    def run() -> None:
        for index, state in enumerate(states):
            states[index], _ = train_members(config, state, text, mesh)
        jax.block_until_ready(states)

    return run


def doublings(members: int) -> list[int]:
    """Numbers of members to train at once: one, twice as many each time, and all of them."""
    return [2**power for power in range(members.bit_length()) if 2**power < members] + [members]


def build_scan(config: Config, windows: np.ndarray) -> Run:
    """This library's readable reference: layers by `lax.scan`, differentiated by jax."""
    return build_ours(override(config, kernel="scan"), windows)


def check_pallas(config: Config) -> None:
    """Refuses what `build_pallas` would run without the Pallas kernels.

    Raises:
      InputError: the kernels do not support this configuration here.
    """
    if reason := why_not_pallas(local_workload(config, PTB_VOCABULARY_SIZE)):
        raise InputError(f"--peers=pallas: {reason}; leave it out here")


def build_pallas(config: Config, windows: np.ndarray) -> Run:
    """This library with its Pallas kernels."""
    return build_ours(override(config, kernel="pallas"), windows)


class LinenModel(nn.Module):
    """The model as a user of flax.linen writes it."""

    config: Config

    @nn.compact
    def __call__(self, tokens: jax.Array, carries: Any) -> tuple[jax.Array, Any]:
        """Logits of a window, and the state after it."""
        size, dtype = self.config.model.hidden_size, self.config.compute.precision
        dropout = nn.Dropout(self.config.regularizers.dropout, deterministic=False)
        x = nn.Embed(PTB_VOCABULARY_SIZE, size, dtype=dtype)(tokens)
        states = []
        for carry in carries:
            layer = nn.RNN(nn.OptimizedLSTMCell(size, dtype=dtype), time_major=True)
            carry, x = layer(dropout(x), initial_carry=carry, return_carry=True)
            states.append(carry)
        return nn.Dense(PTB_VOCABULARY_SIZE, dtype=dtype)(dropout(x)).astype(jnp.float32), states


def build_linen(config: Config, windows: np.ndarray) -> Run:
    """`flax.linen.RNN` over `OptimizedLSTMCell`, one jitted step per window."""
    model, carries = LinenModel(config), _zero_carries(config)
    key = jax.random.key(config.seed)
    params = model.init({"params": key, "dropout": key}, jnp.asarray(windows[0, :-1]), carries)

    def loss(params, window, carries, key):
        logits, carries = model.apply(params, window[:-1], carries, rngs={"dropout": key})
        return _loss(logits, window[1:]), carries

    return _run_optax(config, windows, params, carries, loss)


class NnxModel(nnx.Module):
    """The model as a user of flax.nnx writes it."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        size, dtype = config.model.hidden_size, jnp.dtype(config.compute.precision)
        self.embed = nnx.Embed(PTB_VOCABULARY_SIZE, size, dtype=dtype, rngs=rngs)
        cells = [
            nnx.OptimizedLSTMCell(size, size, dtype=dtype, rngs=rngs)
            for _ in range(config.model.layers)
        ]
        self.layers = nnx.List(
            [nnx.RNN(cell, time_major=True, return_carry=True) for cell in cells]
        )
        self.dense = nnx.Linear(size, PTB_VOCABULARY_SIZE, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.regularizers.dropout)

    def __call__(self, tokens: jax.Array, carries: Any, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        """Logits of a window, and the state after it."""
        x, states = self.embed(tokens), []
        for layer, carry in zip(self.layers, carries, strict=True):
            carry, x = layer(self.dropout(x, rngs=rngs), initial_carry=carry)
            states.append(carry)
        return self.dense(self.dropout(x, rngs=rngs)).astype(jnp.float32), states


def build_nnx(config: Config, windows: np.ndarray) -> Run:
    """`flax.nnx.RNN` over `OptimizedLSTMCell`, one jitted step per window."""
    graph, params, rest = nnx.split(NnxModel(config, nnx.Rngs(config.seed)), nnx.Param, ...)

    def loss(params, window, carries, key):
        model = nnx.merge(graph, params, rest)
        logits, carries = model(window[:-1], carries, nnx.Rngs(dropout=key))
        return _loss(logits, window[1:]), carries

    return _run_optax(config, windows, params, _zero_carries(config), loss)


def check_cudnn(config: Config) -> None:
    """Refuses what `build_cudnn` cannot build.

    Raises:
      InputError: there is no NVIDIA GPU, or the precision is not float32.
    """
    if jax.default_backend() != "gpu":
        raise InputError("--peers=cudnn: needs an NVIDIA GPU; leave it out here")
    if config.compute.precision != "float32":
        raise InputError("--peers=cudnn: supports float32 only; name cudnn:float32")


def build_cudnn(config: Config, windows: np.ndarray) -> Run:
    """`jax.experimental.rnn.lstm`, which binds cuDNN: float32, one layer at a time, our masks."""
    from jax.experimental import rnn

    size, batch, layers = config.model.hidden_size, config.train.batch_size, config.model.layers
    keys = jax.random.split(jax.random.key(config.seed), layers + 2)
    params = {
        "embedding": jax.random.normal(keys[0], (PTB_VOCABULARY_SIZE, size)),
        "layers": [rnn.init_lstm_weight(key, size, size, 1, False) for key in keys[1:-1]],
        "weights": jax.random.normal(keys[-1], (size, PTB_VOCABULARY_SIZE)) / np.sqrt(size),
        "bias": jnp.zeros(PTB_VOCABULARY_SIZE),
    }
    lengths = jnp.full(batch, config.train.unroll, jnp.int32)

    def loss(params, window, carries, key):
        rates = active_rates(config.regularizers)
        masks = sample_masks(config, rates, window[:-1], PTB_VOCABULARY_SIZE, key=key)
        site_masks = masks.inputs or (None,) * layers
        x, states = params["embedding"][window[:-1]], []
        for (c, h), weights, mask in zip(carries, params["layers"], site_masks, strict=True):
            x = jnp.swapaxes(drop(x, mask), 0, 1)
            results: Any = rnn.lstm(
                x, h[None], c[None], weights, lengths, size, size, 1, 0.0, False, None
            )
            x, h, c = jnp.swapaxes(results[0], 0, 1), *results[1:]
            states.append((c[0], h[0]))
        return _loss(drop(x, masks.output) @ params["weights"] + params["bias"], window[1:]), states

    return _run_optax(config, windows, params, _zero_carries(config), loss)


def _zero_carries(config: Config) -> list[tuple[jax.Array, jax.Array]]:
    """Zero states c and h of every layer, in the dtype that flax's cells carry."""
    shape = (config.train.batch_size, config.model.hidden_size)
    dtype = config.compute.precision
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.model.layers)]


def _loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nll.sum(axis=0).mean()


def _run_optax(config: Config, windows: np.ndarray, params: Any, carries: Any, loss: Any) -> Run:
    """Trains with our optimizer, one jitted step per window, buffers donated."""
    optimizer = make_optimizer(config.train, len(windows))
    state = params, optimizer.init(params), carries
    text, key = list(jnp.asarray(windows)), jax.random.key(config.seed)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, window, key):
        params, opt_state, carries = state
        gradient, carries = jax.grad(loss, has_aux=True)(params, window, carries, key)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, carries

    def run() -> None:
        nonlocal state, key
        for window in text:
            key, mask_key = jax.random.split(key)
            state = step(state, window, mask_key)
        jax.block_until_ready(state)

    return run


BUILDERS: dict[str, Callable[..., Run]] = {
    "zaremba_jax": build_ours,
    "scan": build_scan,
    "pallas": build_pallas,
    "flax": build_linen,
    "nnx": build_nnx,
    "torch": functools.partial(build_torch, vocabulary=PTB_VOCABULARY_SIZE),
    "torch-compile": functools.partial(build_torch, vocabulary=PTB_VOCABULARY_SIZE, compiled=True),
    "cudnn": build_cudnn,
}

# Checks whether a contender can run, before it is built.
CHECKS: dict[str, Callable[[Config], None]] = {
    "torch": check_torch,
    "torch-compile": check_torch,
    "cudnn": check_cudnn,
    "pallas": check_pallas,
}
