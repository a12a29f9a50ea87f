"""The scoring function of a model as StableHLO, which runs without this package.

Jax writes and reads it with flatbuffers, which the extra `stablehlo` installs.
"""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from zaremba_jax.array_types import RNNState
from zaremba_jax.cells import pack_state, unpack_state
from zaremba_jax.config import override
from zaremba_jax.errors import InputError
from zaremba_jax.model import Model, softmax_weights

PLATFORMS = ("cpu", "cuda", "tpu")
PlainState = tuple[tuple[jax.Array, ...], ...]


def portable_scoring(model: Model) -> bytes:
    """A program with the weights inside, for `PLATFORMS` and texts of any size.

    In a process that has only jax and flatbuffers, `jax.export.deserialize(...).call` is then

        score(tokens, targets, state) -> nats, state

    with int32 `tokens` and `targets` [time, batch], ids in the vocabulary, the nats of each
    target given the tokens before it, [time, batch], and, as `state`, a tuple of arrays
    [batch, hidden] per layer: h, and for an LSTM c too. A text begins with a state of zeros.

    Args:
      model: a trained model.

    Returns:
      What `jax.export.Exported.serialize` returns.

    Raises:
      InputError: flatbuffers is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "StableHLO is written with flatbuffers, which is not installed:"
            " pip install 'zaremba-jax[stablehlo]'"
        )
    # Symbolic sizes leave no choice of kernel and cannot be chunked.
    config = override(model.config, kernel="custom_vjp", softmax_tokens=0)
    params = model.params
    if config.compute.precision == "bfloat16":
        # Tied weights would be laid out by an operation that no exported program may have.
        softmax = dataclasses.replace(params.softmax, weights=softmax_weights(params))
        params = dataclasses.replace(params, softmax=softmax)
    predictor = dataclasses.replace(model, params=params, config=config).predictor
    layers = params.layers

    def score(tokens: jax.Array, targets: jax.Array, state: PlainState) -> Any:
        named = tuple(
            unpack_state(layer.cell, arrays) for layer, arrays in zip(layers, state, strict=True)
        )
        nll, new_state = predictor.token_nll(tokens, targets, named)
        return nll, _plain(new_state)

    time, batch = export.symbolic_shape("time, batch")
    tokens = jax.ShapeDtypeStruct((time, batch), jnp.int32)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch, x.shape[1]), x.dtype),
        _plain(predictor.zero_state(batch_size=1)),
    )
    exported = export.export(jax.jit(score), platforms=PLATFORMS)(tokens, tokens, state)
    return bytes(exported.serialize())


def _plain(state: RNNState) -> PlainState:
    """The state as tuples, which need no class of this package."""
    return tuple(map(pack_state, state))
