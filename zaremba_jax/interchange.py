"""Weights to and from other libraries: `torch.nn.LSTM`, and the LSTM cells of flax.

All compute the same cell. Theirs have the gates in the order i, f, g, o, ours f, i, o, u;
torch's matrices are transposed, and it has two biases where ours has their sum. Nothing
here needs either library: weights come and go as arrays by name.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import LayerParams, ModelParams, SoftmaxParams, TiedSoftmaxParams
from zaremba_jax.config import QUICK, Config, override
from zaremba_jax.model import softmax_of

_OURS = (1, 0, 3, 2)  # the places of f, i, o, u among i, f, g, o; and the other way round
_LINEN = "ifgo"
# Of torch's example `word_language_model`.
_EMBEDDING, _LSTM, _WEIGHTS, _BIAS = "encoder.weight", "rnn.", "decoder.weight", "decoder.bias"


def lstm_from_torch(state: Mapping[str, Any], prefix: str = "") -> tuple[LayerParams, ...]:
    """The layers of a `torch.nn.LSTM`, from its `state_dict()`.

    Args:
      state: arrays, or tensors in the host's memory, by name.
      prefix: of the LSTM's names, as `rnn.`; others are passed over.

    Raises:
      ValueError: it is no LSTM, or one that reads in both directions or projects its h.
    """
    own = {
        name.removeprefix(prefix): np.asarray(array, np.float32)
        for name, array in state.items()
        if name.startswith(prefix)
    }
    depth = sum(name.startswith("weight_ih_l") for name in own)
    layers = [_layer_from_torch(own, f"l{n}", prefix) for n in range(max(depth, 1))]
    if own:
        raise ValueError(
            f"{', '.join(prefix + name for name in own)}: only a torch.nn.LSTM in one direction,"
            " without projections, can be taken; leave out what is not part of it"
        )
    return tuple(layers)


def _layer_from_torch(own: dict[str, np.ndarray], layer: str, prefix: str) -> LayerParams:
    """A layer, whose arrays are taken out of `own`."""
    try:
        inputs, recurrent = (own.pop(f"weight_{kind}_{layer}") for kind in ("ih", "hh"))
    except KeyError as missing:
        raise ValueError(
            f"{prefix}{str(missing)[1:-1]}: is missing; give the state_dict of a torch.nn.LSTM"
        ) from None
    zeros = np.zeros(len(inputs), np.float32)
    bias = own.pop(f"bias_ih_{layer}", zeros) + own.pop(f"bias_hh_{layer}", zeros)
    if inputs.shape[0] != 4 * recurrent.shape[1]:
        raise ValueError(
            f"{prefix}weight_ih_{layer}: has {len(inputs)} rows for {recurrent.shape[1]} units,"
            " where an LSTM has 4 a unit; torch's GRU has a bias that the cells here lack"
        )
    return _layer(inputs.T, recurrent.T, bias)


def lstm_to_torch(layers: tuple[LayerParams, ...], prefix: str = "") -> dict[str, np.ndarray]:
    """The `state_dict()` of the `torch.nn.LSTM` that computes the same; `bias_hh` is zero.

    Raises:
      ValueError: a layer is no LSTM.
    """
    state = {}
    for depth, layer in enumerate(layers):
        if layer.cell != "lstm":
            raise ValueError(f"cell={layer.cell}: only LSTM layers have a torch.nn.LSTM")
        bias = _reordered(layer.bias)
        arrays = {
            "weight_ih": _reordered(layer.input_weights).T,
            "weight_hh": _reordered(layer.recurrent_weights).T,
            "bias_ih": bias,
            "bias_hh": np.zeros_like(bias),
        }
        state |= {f"{prefix}{name}_l{depth}": np.ascontiguousarray(x) for name, x in arrays.items()}
    return state


def model_from_torch(state: Mapping[str, Any]) -> ModelParams:
    """A language model from a state under the names of torch's example `word_language_model`.

    They are `encoder.weight`, `rnn.*`, `decoder.weight` and `decoder.bias`. A decoder that
    is the encoder makes tied weights.

    Raises:
      ValueError: an array is missing, or as `lstm_from_torch`.
    """
    names = (_EMBEDDING, _WEIGHTS, _BIAS)
    if missing := [name for name in names if name not in state]:
        raise ValueError(
            f"{', '.join(missing)}: missing; name the arrays {', '.join(names)} and {_LSTM}*, as"
            " torch's example word_language_model does"
        )
    embedding, weights, bias = (np.asarray(state[name], np.float32) for name in names)
    tied = np.array_equal(embedding, weights)
    return ModelParams(
        embedding=jnp.asarray(embedding),
        layers=lstm_from_torch(state, _LSTM),
        softmax=TiedSoftmaxParams(bias=jnp.asarray(bias))
        if tied
        else SoftmaxParams(weights=jnp.asarray(weights.T), bias=jnp.asarray(bias)),
    )


def model_to_torch(params: ModelParams) -> dict[str, np.ndarray]:
    """The other way round.

    Raises:
      ValueError: as `lstm_to_torch`.
    """
    softmax = softmax_of(params)
    return {
        _EMBEDDING: np.asarray(params.embedding),
        **lstm_to_torch(params.layers, _LSTM),
        _WEIGHTS: np.ascontiguousarray(np.asarray(softmax.weights).T),
        _BIAS: np.asarray(softmax.bias),
    }


def config_for(params: ModelParams) -> Config:
    """A configuration with the sizes of a model from elsewhere.

    How that was trained is not known: all but the network and its noise, of which there is
    none, is the preset quick's.
    """
    hidden = params.layers[0].recurrent_weights.shape[0]
    return override(
        QUICK,
        corpus="files",
        dropout=0.0,
        cell=params.layers[0].cell,
        layers=len(params.layers),
        hidden_size=hidden,
        embedding_size=0 if params.embedding.shape[1] == hidden else params.embedding.shape[1],
        tie_weights=isinstance(params.softmax, TiedSoftmaxParams),
    )


def layer_from_linen(cell: Mapping[str, Mapping[str, Any]]) -> LayerParams:
    """A layer from the parameters of a `flax.linen.OptimizedLSTMCell` or `LSTMCell`.

    Args:
      cell: `ii`, `if`, `ig`, `io` with a `kernel`, `hi`, `hf`, `hg`, `ho` with a `bias` too.

    Raises:
      ValueError: one is missing.
    """
    try:
        inputs, recurrent = (
            np.concatenate([np.asarray(cell[side + gate]["kernel"]) for gate in _LINEN], axis=1)
            for side in "ih"
        )
        bias = np.concatenate([np.asarray(cell["h" + gate]["bias"]) for gate in _LINEN])
    except KeyError as missing:
        raise ValueError(
            f"{missing} is missing; give the params of a flax.linen.OptimizedLSTMCell"
        ) from None
    return _layer(inputs, recurrent, bias)


def layer_from_nnx(input_kernel: Any, recurrent_kernel: Any, bias: Any) -> LayerParams:
    """A layer from the arrays of a `flax.nnx.OptimizedLSTMCell`.

    Args:
      input_kernel: of its `dense_i`, [features, 4 * hidden].
      recurrent_kernel: of its `dense_h`, [hidden, 4 * hidden].
      bias: of its `dense_h`, [4 * hidden].
    """
    return _layer(*map(np.asarray, (input_kernel, recurrent_kernel, bias)))


def _layer(inputs: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> LayerParams:
    """From matrices [in, gates] with the gates i, f, g, o.

    Raises:
      ValueError: the shapes do not fit.
    """
    gates = 4 * len(recurrent)
    if inputs.shape[1:] != (gates,) or recurrent.shape != (gates // 4, gates):
        raise ValueError(
            f"weights of shape {inputs.shape} and {recurrent.shape} are not those of an LSTM's"
            " four gates; give the arrays of one layer"
        )
    if bias.shape != (gates,):
        raise ValueError(f"a bias of shape {bias.shape} does not fit {gates} gates")
    arrays = (jnp.asarray(_reordered(x), jnp.float32) for x in (inputs, recurrent, bias))
    return LayerParams(*arrays)


def _reordered(x: Any) -> np.ndarray:
    """The four gates on the last axis from the one order to the other."""
    parts = np.split(np.asarray(x), 4, axis=-1)
    return np.concatenate([parts[place] for place in _OURS], axis=-1)
