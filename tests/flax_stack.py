"""What a user of Flax writes, and ours with the same weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zaremba_jax.array_types import LayerParams
from zaremba_jax.interop.flax_modules import DeepRNN
from zaremba_jax.interop.flax_weights import nnx_layer

BATCH, TIME, FEATURES, HIDDEN = 3, 4, 2, 3
CELLS = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "tanh": nnx.SimpleCell}
ZEROS = nnx.initializers.zeros_init()
# Drawing weights takes longer to compile than everything else here.
UNDRAWN = {"kernel_init": ZEROS, "recurrent_kernel_init": ZEROS, "param_dtype": jnp.float64}


class FlaxStack(nnx.Module):
    """Dropout before each layer and after the last, called like an `nnx.RNN`."""

    def __init__(self, cell, layers, dropout=0.0, dtype: Any = jnp.float64):
        rngs = nnx.Rngs(params=0, dropout=1)
        sizes = (FEATURES,) + (HIDDEN,) * (layers - 1)
        options = UNDRAWN | {"param_dtype": dtype, "dtype": dtype}
        self.rnns = nnx.List(
            [nnx.RNN(CELLS[cell](size, HIDDEN, **options, rngs=rngs)) for size in sizes]
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(
        self, x, *, initial_carry=None, return_carry=True, keep_order=False, rngs=None, **options
    ):
        several, new_carries = len(self.rnns) > 1, []
        for depth, rnn in enumerate(self.rnns):
            carry = initial_carry[depth] if several and initial_carry else initial_carry
            keep = keep_order or rnn is not self.rnns[-1]  # so that the next layer reverses it
            results = rnn(
                self.dropout(x),
                initial_carry=carry,
                return_carry=return_carry,
                keep_order=keep,
                **options,
            )
            carry, x = results if return_carry else (None, results)
            new_carries.append(carry)
        carries, x = tuple(new_carries) if several else new_carries[0], self.dropout(x)
        return (carries, x) if return_carry else x


def make_pair(cell, layers, dropout=0.0, dtype: Any = jnp.float64, first_seed=0) -> Any:
    """Flax's stack with random parameters, and ours with the same ones."""
    theirs = FlaxStack(cell, layers, dropout, dtype)
    params = nnx.state(theirs, nnx.Param)
    for seed, (_, param) in enumerate(nnx.to_flat_state(params)):
        param[...] = normal(*param.shape, seed=first_seed + seed).astype(dtype)
    nnx.update(theirs, params)
    ours = DeepRNN(
        FEATURES,
        HIDDEN,
        layers=layers,
        cell=cell,
        dropout=dropout,
        return_carry=True,
        **(UNDRAWN | {"param_dtype": dtype}),
        rngs=nnx.Rngs(params=2, dropout=1),
    )
    ours.load(layers_of(theirs))
    return theirs, ours


def layers_of(module) -> tuple[LayerParams, ...]:
    """The layers of a stack, of a module of ours, or of both directions of either."""
    if isinstance(module, nnx.Bidirectional):
        return layers_of(module.forward_rnn) + layers_of(module.backward_rnn)
    if isinstance(module, FlaxStack):
        return tuple(nnx_layer(rnn.cell) for rnn in module.rnns)
    return module.params


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def sequences_of(lengths):
    """1 within a sequence and 0 over its padding, [batch, time, 1]."""
    return jnp.asarray(np.arange(TIME)[None, :, None] < np.array(lengths)[:, None, None], float)


def carries(cell, layers, batch=(BATCH,)):
    """A carry of Flax for each of several layers."""
    shape = (*batch, HIDDEN)
    one = (normal(*shape, seed=1), normal(*shape, seed=2))
    return ((one if cell == "lstm" else one[1]),) * layers


def assert_close(actual, expected, tolerance=1e-10):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), actual, expected)
