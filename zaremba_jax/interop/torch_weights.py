"""Weights of `torch.nn.LSTM`, `GRU` and `RNN` as layers of this library, and back.

Both compute the same. torch orders an LSTM's gates i, f, g, o, this library f, i, o, u; torch's
matrices are transposed, and it has two biases, which are summed into one here. Of a GRU that is
exact only while the part of the second bias for n is zero, since the reset gate multiplies it.
Nothing here needs torch: weights come and go as arrays by name.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import CellName, LayerParams, ModelParams, SoftmaxParams
from zaremba_jax.cells import merge_biases
from zaremba_jax.config import Config, UnitName, override
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_file import read_safetensors
from zaremba_jax.model import softmax_weights
from zaremba_jax.presets import QUICK

_ARRAY = re.compile(r"(weight|bias)_(ih|hh)_l(0|[1-9]\d*)")
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # of DataParallel and torch.compile
# Positions of our gates among torch's, and vice versa: of f, i, o, u among i, f, g, o.
_PERMUTATIONS: dict[CellName, tuple[int, ...]] = {
    "lstm": (1, 0, 3, 2),
    "gru": (0, 1, 2),
    "tanh": (0,),
}
_CELLS: dict[int, CellName] = {  # by the number of gates
    len(order): cell for cell, order in _PERMUTATIONS.items()
}
_CONVERT = (  # copies, since safetensors saves no tensor that shares its memory, as tied ones do
    'python -c "import sys, torch, safetensors.torch as s; s.save_file({n: x.contiguous().clone()'
    " for n, x in torch.load(sys.argv[1], 'cpu').items()}, sys.argv[2])\""
)
# Names in torch's example `word_language_model`.
_EMBEDDING, _LAYERS, _WEIGHTS, _BIAS = "encoder.weight", "rnn.", "decoder.weight", "decoder.bias"

State = Mapping[str, Any] | Iterable[tuple[str, Any]]
Nonlinearity = Literal["tanh", "relu"]


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, by name.

    Raises:
      MissingFileError: there is no such file.
      InputError: it is no safetensors file; for a pickle, the message has the line to convert it.
    """
    try:
        arrays, _ = read_safetensors(path)
        return arrays
    except InputError:
        if not _is_pickle(Path(path)):
            raise
        names = shlex.join(map(str, (path, Path(path).with_suffix(".safetensors"))))
        raise InputError(
            f"{path}: is a pickle, which can run code and is not read; convert it where torch is"
            f" (from a whole module or a checkpoint, save its state_dict first): {_CONVERT} {names}"
        ) from None


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as what `torch.save` writes, today (a zip archive) or in the past."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def layers_from_torch(
    state: State, prefix: str = "", nonlinearity: Nonlinearity | None = None
) -> tuple[LayerParams, ...]:
    """The layers of a `torch.nn.LSTM`, `GRU` or `RNN`, from its `state_dict()`.

    Args:
      state: arrays or tensors by name; `named_parameters()` will do, too.
      prefix: of the layers' names, such as `rnn.`; all other names are ignored.
      nonlinearity: of an RNN, whose arrays do not tell it.

    Raises:
      InputError: it is none of them, or one that is bidirectional or has projections; it is an RNN
        with another nonlinearity than tanh, or a GRU with a bias that the cell here lacks; or an
        array has other dimensions than torch's.
    """
    state = dict(state)
    names = [name for name in state if name.startswith(prefix)]
    if others := [name for name in names if not _ARRAY.fullmatch(name.removeprefix(prefix))]:
        raise InputError(
            f"{', '.join(others)}: only a unidirectional torch.nn.LSTM, GRU or RNN without"
            " projections can be converted; leave out what is not part of it"
        )
    arrays = {name.removeprefix(prefix): _array(name, state, prefix) for name in names}
    last = max((int(name.rpartition("_l")[2]) for name in arrays), default=0)
    return tuple(_layer_from_torch(arrays, f"l{n}", prefix, nonlinearity) for n in range(last + 1))


def _layer_from_torch(
    arrays: Mapping[str, np.ndarray], layer: str, prefix: str, nonlinearity: Nonlinearity | None
) -> LayerParams:
    try:
        inputs, recurrent = (arrays[f"weight_{kind}_{layer}"] for kind in ("ih", "hh"))
    except KeyError as missing:
        raise InputError(
            f"{prefix}{str(missing)[1:-1]}: is missing; give the state_dict of a torch.nn.LSTM, GRU"
            " or RNN"
        ) from None
    rows, units = len(inputs), recurrent.shape[-1]
    zeros = np.zeros(rows, inputs.dtype)
    of_inputs, of_past = (arrays.get(f"bias_{kind}_{layer}", zeros) for kind in ("ih", "hh"))
    cell: CellName | None = next((_CELLS[n] for n in _CELLS if rows == n * units), None)
    if cell is None:
        raise InputError(
            f"{prefix}weight_ih_{layer}: has {rows} rows for {units} units, where an LSTM has 4 per"
            " unit, a GRU 3 and an RNN 1; give an unmodified state_dict"
        )
    shapes = {array.shape[:1] for array in (inputs, recurrent, of_inputs, of_past)}
    if len(shapes) > 1:
        raise InputError(
            f"{prefix}*_{layer}: the arrays have {', '.join(str(n) for (n,) in sorted(shapes))}"
            " rows, but those of one layer must agree; give an unmodified state_dict"
        )
    if cell == "tanh":
        _require_tanh(nonlinearity, f"{prefix}*_{layer}")
    if cell == "gru" and of_past[2 * units :].any():
        raise InputError(
            f"{prefix}bias_hh_{layer}: its last {units}, for the gate n, are not zero; torch's GRU"
            " multiplies them by the reset gate, and the GRU here has one bias per gate: only a GRU"
            " without biases, or with zeros there, can be converted"
        )
    return LayerParams(
        input_weights=jnp.asarray(_reordered(inputs.T, cell)),
        recurrent_weights=jnp.asarray(_reordered(recurrent.T, cell)),
        bias=jnp.asarray(_reordered(of_inputs + of_past, cell)),
        cell=cell,
    )


def _require_tanh(nonlinearity: Nonlinearity | None, names: str) -> None:
    if nonlinearity is None:
        raise InputError(
            f"{names}: are those of a torch.nn.RNN, which do not tell its nonlinearity; give"
            " nonlinearity=tanh if it is tanh, torch's default (RNN_TANH)"
        )
    if nonlinearity != "tanh":
        raise InputError(
            f"nonlinearity={nonlinearity}: no cell here computes it; only a torch.nn.RNN with tanh"
            " can be converted"
        )


def layers_to_torch(layers: tuple[LayerParams, ...], prefix: str = "") -> dict[str, np.ndarray]:
    """The `state_dict()` of the `torch.nn.LSTM`, `GRU` or `RNN` (tanh) that computes the same.

    `bias_hh` is the second bias, or zero if a layer has only one or is a GRU.

    Raises:
      InputError: layers differ in size.
    """
    sizes = [len(layer.recurrent_weights) for layer in layers]
    if len(set(sizes)) > 1:
        raise InputError(
            f"layers of {', '.join(map(str, sizes))} units: torch's have one size; export the model"
            " as a folder instead"
        )
    state = {}
    for depth, layer in enumerate(layers):
        if layer.cell == "gru":  # whose second bias torch would multiply by the reset gate
            layer = merge_biases(layer)
        second = np.zeros_like(layer.bias) if layer.second_bias is None else layer.second_bias
        arrays = {
            "weight_ih": _reordered(layer.input_weights, layer.cell).T,
            "weight_hh": _reordered(layer.recurrent_weights, layer.cell).T,
            "bias_ih": _reordered(layer.bias, layer.cell),
            "bias_hh": _reordered(second, layer.cell),
        }
        state |= {f"{prefix}{name}_l{depth}": np.ascontiguousarray(x) for name, x in arrays.items()}
    return state


def model_from_torch(state: State, nonlinearity: Nonlinearity | None = None) -> ModelParams:
    """A language model from a state with the names of torch's example `word_language_model`.

    They are `encoder.weight`, `rnn.*`, `decoder.weight` and `decoder.bias`, after the prefixes
    `module.` and `_orig_mod.` of torch's wrappers. The weights are tied if decoder and encoder are
    equal, or if one of the two is missing, as `safetensors.torch.save_model` leaves it. A bias that
    is missing is zero. `nonlinearity` is as for `layers_from_torch`.

    Raises:
      InputError: an array is missing or has another name, or as for `layers_from_torch`.
    """
    state = {_WRAPPERS.sub("", name, count=1): x for name, x in dict(state).items()}
    known = (_EMBEDDING, _WEIGHTS, _BIAS)
    given = [name for name in (_EMBEDDING, _WEIGHTS) if name in state]
    if not given:
        raise InputError(
            f"{_EMBEDDING}, {_WEIGHTS}: missing; name the arrays {', '.join(known)}"
            f" and {_LAYERS}*, as torch's example word_language_model does"
        )
    if others := [x for x in state if x not in known and not x.startswith(_LAYERS)]:
        raise InputError(
            f"{', '.join(others)}: no part of a model like torch's example word_language_model;"
            " leave out what does not change its outputs, since the rest cannot be converted"
        )
    embedding, weights = _array(given[0], state), _array(given[-1], state)
    bias = _array(_BIAS, state) if _BIAS in state else np.zeros(len(weights), weights.dtype)
    tied = np.array_equal(embedding, weights)
    return ModelParams(
        embedding=jnp.asarray(embedding),
        layers=layers_from_torch(state, _LAYERS, nonlinearity),
        softmax=SoftmaxParams(
            weights=None if tied else jnp.asarray(weights.T), bias=jnp.asarray(bias)
        ),
    )


def model_to_torch(params: ModelParams) -> dict[str, np.ndarray]:
    """The state that `model_from_torch` reads.

    Raises:
      InputError: as for `layers_to_torch`.
    """
    return {
        _EMBEDDING: np.asarray(params.embedding),
        **layers_to_torch(params.layers, _LAYERS),
        _WEIGHTS: np.ascontiguousarray(np.asarray(softmax_weights(params)).T),
        _BIAS: np.asarray(params.softmax.bias),
    }


def infer_config(params: ModelParams, unit: UnitName = "word") -> Config:
    """A configuration with the sizes of a model from elsewhere, of tokens of a unit.

    How it was trained is unknown: the corpus is `files`, there is no dropout, and all else
    but the network is the preset quick's.
    """
    hidden = params.layers[0].recurrent_weights.shape[0]
    return override(
        QUICK,
        corpus="files",
        unit=unit,
        dropout=0.0,
        cell=params.layers[0].cell,
        layers=len(params.layers),
        hidden_size=hidden,
        embedding_size=0 if params.embedding.shape[1] == hidden else params.embedding.shape[1],
        tie_weights=params.softmax.weights is None,
        second_bias=params.layers[0].second_bias is not None,
    )


def _array(name: str, state: Mapping[str, Any], prefix: str = "") -> np.ndarray:
    """A double-precision array as it is, any other in single precision."""
    x = state[name]
    if hasattr(x, "detach"):  # a tensor; NumPy has no bfloat16
        x = x.detach().cpu()
        x = x.float() if x.dtype.itemsize < 4 else x
    array, dimensions = np.asarray(x), 1 if "bias" in name.removeprefix(prefix) else 2
    if array.ndim != dimensions:
        raise InputError(
            f"{name}: has {array.ndim} dimensions, where torch's has {dimensions}; give an"
            " unmodified state_dict"
        )
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _reordered(x: Any, cell: CellName) -> np.ndarray:
    """Moves a cell's gates on the last axis from one order to the other."""
    order = _PERMUTATIONS[cell]
    parts = np.split(np.asarray(x), len(order), axis=-1)
    return np.concatenate([parts[index] for index in order], axis=-1)
