"""How many masks information passes in a network, counted from the masks themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import Masks
from zaremba_jax.cells import drop
from zaremba_jax.config import Config, override
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.regularizers import active_rates, sample_masks
from zaremba_jax.rnn import deep_rnn, zero_state

_VALUE = 1.25  # of every mask: float32 holds its powers up to some 390 masks


def count_masks(config: Config) -> np.ndarray:
    """Counts the masks between an embedded input and the dropped output 0, 1, … steps later.

    At zero input, bias and state the tanh cell is linear. If every mask that `sample_masks`
    makes is replaced by a constant, the derivative of the output with respect to the input
    grows by that factor for each mask on the way, whichever way it takes.

    `config` decides which masks there are, and in `unroll` how many counts; it has a tanh cell.
    """
    tokens = jnp.zeros((config.train.unroll, 1), jnp.int32)
    rates = active_rates(config.regularizers)
    masks = sample_masks(config, rates, tokens, 1, key=jax.random.key(0))
    ratio = _sensitivity(config, masks, _VALUE) / _sensitivity(config, masks, 1.0)
    return (np.log(ratio) / np.log(_VALUE))[::-1]


def _sensitivity(config: Config, masks: Masks, value: float) -> np.ndarray:
    """Norm of the last output's derivative with respect to the input at each step."""
    masks = jax.tree.map(lambda mask: jnp.full_like(mask, value), masks)
    layers = init_params(config.model, 1, key=jax.random.key(1)).layers
    layers = tuple(dataclasses.replace(p, bias=jnp.zeros_like(p.bias)) for p in layers)
    steps = config.train.unroll

    def last_output(inputs, layers, masks):
        outputs, _ = deep_rnn(layers, inputs, zero_state(layers, 1), masks)
        return drop(outputs, masks.output)[-1].sum()

    inputs = jnp.zeros((steps, 1, config.model.features))
    gradient = jax.jit(jax.grad(last_output))(inputs, layers, masks)
    return np.linalg.norm(np.asarray(gradient, np.float64), axis=(1, 2))


def corruption_table(lags: tuple[int, ...], layers: int = 2) -> dict[str, dict[str, int]]:
    """Counts by method and lag, for networks of `layers` layers."""
    size = {"cell": "tanh", "hidden_size": 16, "layers": layers, "init_scale": 0.4}
    longest = max(lags)
    table = {}
    for name, hidden in (("ordinary dropout", 0.5), ("non-recurrent dropout", 0.0)):
        config = override(QUICK, **size, unroll=longest + 1, dropout=0.5, hidden_dropout=hidden)
        counts = count_masks(config)
        table[name] = {str(lag): round(counts[lag]) for lag in lags}
    return table
