"""The benchmark's peers on jax: flax.linen, flax.nnx and jax's binding of cuDNN."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.training.turns import Turn
from zaremba_jax.cells import drop
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError
from zaremba_jax.optimizer import make_optimizer
from zaremba_jax.regularizers import active_rates, sample_masks


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


def build_linen(config: Config, windows: np.ndarray) -> Turn:
    """`flax.linen.RNN` over `OptimizedLSTMCell`, one jitted step per window."""
    model, carries = LinenModel(config), _zero_carries(config)
    key = jax.random.key(config.seed)
    params = model.init({"params": key, "dropout": key}, jnp.asarray(windows[0, :-1]), carries)

    def loss(params, window, carries, key):
        logits, carries = model.apply(params, window[:-1], carries, rngs={"dropout": key})
        return _loss(logits, window[1:]), carries

    return _train_by_optax(config, windows, params, carries, loss)


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


def build_nnx(config: Config, windows: np.ndarray) -> Turn:
    """`flax.nnx.RNN` over `OptimizedLSTMCell`, one jitted step per window."""
    graph, params, rest = nnx.split(NnxModel(config, nnx.Rngs(config.seed)), nnx.Param, ...)

    def loss(params, window, carries, key):
        model = nnx.merge(graph, params, rest)
        logits, carries = model(window[:-1], carries, nnx.Rngs(dropout=key))
        return _loss(logits, window[1:]), carries

    return _train_by_optax(config, windows, params, _zero_carries(config), loss)


def check_cudnn(config: Config) -> None:
    """Refuses what `build_cudnn` cannot build: only float32, on an NVIDIA GPU."""
    if jax.default_backend() != "gpu":
        raise InputError("--peers=cudnn: needs an NVIDIA GPU; leave it out here")
    if config.compute.precision != "float32":
        raise InputError("--peers=cudnn: supports float32 only; name cudnn:float32")


def build_cudnn(config: Config, windows: np.ndarray) -> Turn:
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

    return _train_by_optax(config, windows, params, _zero_carries(config), loss)


def _zero_carries(config: Config) -> list[tuple[jax.Array, jax.Array]]:
    """Zero states c and h of every layer, in the dtype that flax's cells carry."""
    shape = (config.train.batch_size, config.model.hidden_size)
    dtype = config.compute.precision
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.model.layers)]


def _loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nll.sum(axis=0).mean()


def _train_by_optax(
    config: Config, windows: np.ndarray, params: Any, carries: Any, loss: Any
) -> Turn:
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

    def train() -> None:
        nonlocal state, key
        for window in text:
            key, mask_key = jax.random.split(key)
            state = step(state, window, mask_key)
        jax.block_until_ready(state)

    return train
