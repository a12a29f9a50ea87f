"""Weights of `torch.nn.LSTM` as layers of this library, and back.

Both compute the same. torch orders the gates i, f, g, o, this library f, i, o, u; torch's
matrices are transposed, and it has two biases, which are summed into one here. Nothing
here needs torch: weights come and go as arrays by name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import LayerParams, ModelParams, SoftmaxParams
from zaremba_jax.config import Config, override
from zaremba_jax.errors import InputError
from zaremba_jax.model import softmax_weights
from zaremba_jax.presets import QUICK

_ARRAY = re.compile(r"(weight|bias)_(ih|hh)_l(0|[1-9]\d*)")
_GATE_PERMUTATION = (1, 0, 3, 2)  # positions of f, i, o, u among i, f, g, o, and vice versa
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel and torch.compile
# Names in torch's example `word_language_model`.
_EMBEDDING, _LSTM, _WEIGHTS, _BIAS = "encoder.weight", "rnn.", "decoder.weight", "decoder.bias"

State = Mapping[str, Any] | Iterable[tuple[str, Any]]


def lstm_from_torch(state: State, prefix: str = "") -> tuple[LayerParams, ...]:
    """The layers of a `torch.nn.LSTM`, from its `state_dict()`.

    Args:
      state: arrays, or tensors in host memory, by name; `named_parameters()` will do, too.
      prefix: of the LSTM's names, such as `rnn.`; all other names are ignored.

    Raises:
      InputError: it is not an LSTM, or one that is bidirectional or has projections, or an array
        has other dimensions than torch's.
    """
    state = dict(state)
    names = [name for name in state if name.startswith(prefix)]
    if others := [name for name in names if not _ARRAY.fullmatch(name.removeprefix(prefix))]:
        raise InputError(
            f"{', '.join(others)}: only a unidirectional torch.nn.LSTM without projections can be"
            " converted; leave out what is not part of it"
        )
    arrays = {name.removeprefix(prefix): _array(name, state) for name in names}
    last = max((int(name.rpartition("_l")[2]) for name in arrays), default=0)
    return tuple(_layer_from_torch(arrays, f"l{n}", prefix) for n in range(last + 1))


def _layer_from_torch(arrays: Mapping[str, np.ndarray], layer: str, prefix: str) -> LayerParams:
    try:
        inputs, recurrent = (arrays[f"weight_{kind}_{layer}"] for kind in ("ih", "hh"))
    except KeyError as missing:
        raise InputError(
            f"{prefix}{str(missing)[1:-1]}: is missing; give the state_dict of a torch.nn.LSTM"
        ) from None
    zeros = np.zeros(len(inputs), inputs.dtype)
    of_inputs, of_past = (arrays.get(f"bias_{kind}_{layer}", zeros) for kind in ("ih", "hh"))
    if len(inputs) != 4 * recurrent.shape[-1]:
        raise InputError(
            f"{prefix}weight_ih_{layer}: has {len(inputs)} rows for {recurrent.shape[-1]} units,"
            " where an LSTM has 4 per unit; torch's GRU has a bias that the cells here lack"
        )
    shapes = {array.shape[:1] for array in (inputs, recurrent, of_inputs, of_past)}
    if len(shapes) > 1:
        raise InputError(
            f"{prefix}*_{layer}: the arrays have {', '.join(str(n) for (n,) in sorted(shapes))}"
            " rows, but those of one layer must agree; give an unmodified state_dict"
        )
    return LayerParams(
        input_weights=jnp.asarray(_reordered(inputs.T)),
        recurrent_weights=jnp.asarray(_reordered(recurrent.T)),
        bias=jnp.asarray(_reordered(of_inputs + of_past)),
    )


def lstm_to_torch(layers: tuple[LayerParams, ...], prefix: str = "") -> dict[str, np.ndarray]:
    """The `state_dict()` of the `torch.nn.LSTM` that computes the same.

    `bias_hh` is the second bias, or zero if a layer has only one.

    Raises:
      InputError: a layer is not an LSTM, or layers differ in size.
    """
    sizes = [len(layer.recurrent_weights) for layer in layers]
    if len(set(sizes)) > 1:
        raise InputError(
            f"layers of {', '.join(map(str, sizes))} units: a torch.nn.LSTM has one size; export"
            " the model as a folder instead"
        )
    state = {}
    for depth, layer in enumerate(layers):
        if layer.cell != "lstm":
            raise InputError(f"cell={layer.cell}: only LSTM layers convert to torch.nn.LSTM")
        second = np.zeros_like(layer.bias) if layer.second_bias is None else layer.second_bias
        arrays = {
            "weight_ih": _reordered(layer.input_weights).T,
            "weight_hh": _reordered(layer.recurrent_weights).T,
            "bias_ih": _reordered(layer.bias),
            "bias_hh": _reordered(second),
        }
        state |= {f"{prefix}{name}_l{depth}": np.ascontiguousarray(x) for name, x in arrays.items()}
    return state


def model_from_torch(state: State) -> ModelParams:
    """A language model from a state with the names of torch's example `word_language_model`.

    They are `encoder.weight`, `rnn.*`, `decoder.weight` and `decoder.bias`, after the prefixes
    `module.` and `_orig_mod.` of torch's wrappers. The weights are tied if decoder and encoder are
    equal, or if one of the two is missing, as `safetensors.torch.save_model` leaves it. A bias that
    is missing is zero.

    Raises:
      InputError: an array is missing, or as for `lstm_from_torch`.
    """
    state = {_WRAPPERS.sub("", name, count=1): x for name, x in dict(state).items()}
    given = [name for name in (_EMBEDDING, _WEIGHTS) if name in state]
    if not given:
        raise InputError(
            f"{_EMBEDDING}, {_WEIGHTS}: missing; name the arrays {_EMBEDDING}, {_WEIGHTS},"
            f" {_BIAS} and {_LSTM}*, as torch's example word_language_model does"
        )
    embedding, weights = _array(given[0], state), _array(given[-1], state)
    bias = _array(_BIAS, state) if _BIAS in state else np.zeros(len(weights), weights.dtype)
    tied = np.array_equal(embedding, weights)
    return ModelParams(
        embedding=jnp.asarray(embedding),
        layers=lstm_from_torch(state, _LSTM),
        softmax=SoftmaxParams(
            weights=None if tied else jnp.asarray(weights.T), bias=jnp.asarray(bias)
        ),
    )


def model_to_torch(params: ModelParams) -> dict[str, np.ndarray]:
    """The state that `model_from_torch` reads.

    Raises:
      InputError: as for `lstm_to_torch`.
    """
    return {
        _EMBEDDING: np.asarray(params.embedding),
        **lstm_to_torch(params.layers, _LSTM),
        _WEIGHTS: np.ascontiguousarray(np.asarray(softmax_weights(params)).T),
        _BIAS: np.asarray(params.softmax.bias),
    }


def infer_config(params: ModelParams) -> Config:
    """A configuration with the sizes of a model from elsewhere.

    How it was trained is unknown: the corpus is `files`, there is no dropout, and all else
    but the network is the preset quick's.
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
        tie_weights=params.softmax.weights is None,
        second_bias=params.layers[0].second_bias is not None,
    )


def _array(name: str, state: Mapping[str, Any]) -> np.ndarray:
    """A double-precision array as it is, any other in single precision."""
    x = state[name]
    x = x.detach() if hasattr(x, "detach") else x  # a parameter of torch
    array, dimensions = np.asarray(x), 1 if "bias" in name else 2
    if array.ndim != dimensions:
        raise InputError(
            f"{name}: has {array.ndim} dimensions, where torch's has {dimensions}; give an"
            " unmodified state_dict"
        )
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _reordered(x: Any) -> np.ndarray:
    """Moves the four gates on the last axis from one order to the other."""
    parts = np.split(np.asarray(x), 4, axis=-1)
    return np.concatenate([parts[index] for index in _GATE_PERMUTATION], axis=-1)
