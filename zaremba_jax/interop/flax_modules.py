"""The regularized deep RNN as a Flax module: `DeepRNN` for nnx, `LinenDeepRNN` for linen.

Both are called like `nnx.RNN` and `nn.RNN`, with Flax's dropout and random streams, and run
the layers of `rnn`. The carry is Flax's own: (c, h) for an LSTM, h for the other cells. Of several
layers it is a tuple of these, bottom layer first.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from zaremba_jax.array_types import CellName, LayerParams
from zaremba_jax.cells import CELLS, merge_biases
from zaremba_jax.config import ComputeConfig
from zaremba_jax.errors import InputError
from zaremba_jax.interop.flax_sequences import (
    Carry,
    Lengths,
    SequenceOptions,
    at_least_float32,
    run_sequences,
    zero_carry,
)
from zaremba_jax.limits import check_limits, whole_number

# The defaults of Flax's cells.
_KERNEL = nn.initializers.lecun_normal()
_RECURRENT_KERNEL = nn.initializers.orthogonal()
_BIAS = nn.initializers.zeros_init()
_NAMES = ("input_weights", "recurrent_weights", "bias")


class _Layer(nnx.Module):
    """The parameters of one layer."""

    def __init__(
        self, cell: CellName, shapes: Any, inits: Any, parts: int, dtype: Any, rngs: nnx.Rngs
    ):
        self.cell: CellName = cell
        self.input_weights, self.recurrent_weights, self.bias = (
            nnx.Param(_in_parts(init, parts)(rngs.params(), shape, dtype))
            for init, shape in zip(inits, shapes, strict=True)
        )

    @property
    def params(self) -> LayerParams:
        values = (getattr(self, name)[...] for name in _NAMES)
        return LayerParams(*values, cell=self.cell)


class DeepRNN(nnx.Module):
    """A deep RNN with dropout on the inputs of its layers (Zaremba et al. 2014, section 3).

    Replaces `nnx.RNN(nnx.OptimizedLSTMCell(in_features, hidden_features))` in one line, or several
    with an `nnx.Dropout` before each and after the last:

        rnn = DeepRNN(3, 64, layers=2, dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1))
        outputs = rnn(inputs, seq_lengths=lengths)  # [batch, time, 3] to [batch, time, 64]

    `train()` and `eval()` turn dropout on and off, as does a call's `deterministic`. Of the
    arguments of an `nnx.RNN` it has `time_major`, `return_carry`, `reverse`, `keep_order` and
    `unroll`, attributes that `set_attributes` or an assignment changes.

    Attributes:
      layers: their parameters, bottom layer first.
      dropout: the operator D, which is Flax's own; its random stream is `dropout`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        layers: int = 1,
        cell: CellName = "lstm",
        dropout: float = 0.0,
        drop_output: bool = True,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        deterministic: bool = False,
        draw_each_gate: bool = False,
        kernel_init: Initializer = _KERNEL,
        recurrent_kernel_init: Initializer = _RECURRENT_KERNEL,
        bias_init: Initializer = _BIAS,
        param_dtype: DTypeLike = jnp.float32,
        compute: ComputeConfig = ComputeConfig(),
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          in_features: size of the inputs.
          hidden_features: units of each layer.
          layers: number of layers.
          cell: `lstm`, `gru` or `tanh`.
          dropout: probability that a unit of a layer's input, or of the last output, is
            dropped; never one of h[t-1].
          drop_output: whether the last output has dropout too: L + 1 sites rather than L.
          time_major: as for `nnx.RNN`, like the next three.
          return_carry: whether a call returns the carry, before the outputs.
          reverse: whether sequences are read from their end.
          keep_order: whether the outputs are then flipped back.
          unroll: accepted from an `nnx.RNN`, where it changes speed alone; the kernels here choose
            for themselves.
          deterministic: turns dropout off, as for `nnx.Dropout`.
          draw_each_gate: whether each gate's weights are drawn on their own, as `nnx.LSTMCell` and
            the cells of linen do, instead of all gates' together, as the cells that this replaces.
            It decides the size of orthogonal weights: those of an LSTM are twice as large.
          kernel_init: of the input weights.
          recurrent_kernel_init: of the recurrent weights.
          bias_init: of the biases.
          param_dtype: type of the parameters, to which inputs are converted.
          compute: precision of the products, and kernel. For jvp, jacfwd or hessian use
            `ComputeConfig(kernel="scan")` without bfloat16: all others support only
            reverse-mode differentiation.
          rngs: draws parameters from `params`; `dropout` is forked for later if there is
            dropout.

        Raises:
          InputError: a size, the dropout or the cell is outside its limits.
        """
        sizes = {"in_features": in_features, "hidden_features": hidden_features}
        _check(cell, dropout, **sizes, layers=layers, unroll=unroll)
        self.drop_output, self.compute = drop_output, compute
        self.time_major, self.return_carry = time_major, return_carry
        self.reverse, self.keep_order, self.unroll = reverse, keep_order, unroll
        parts = len(CELLS[cell].gates) if draw_each_gate else 1
        inits = kernel_init, recurrent_kernel_init, bias_init
        self.layers = nnx.List(
            [
                _Layer(cell, shapes, inits, parts, param_dtype, rngs)
                for shapes in _shapes(in_features, hidden_features, layers, cell)
            ]
        )
        self.dropout = nnx.Dropout(
            dropout, deterministic=deterministic, rngs=rngs if dropout else None
        )

    @property
    def params(self) -> tuple[LayerParams, ...]:
        """The layers as `rnn.deep_rnn` takes them."""
        return tuple(layer.params for layer in self.layers)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | None = None
    ) -> Carry:
        """The zeros before the first step of inputs [*batch, features]; `rngs` is not used."""
        first, count = self.layers[0].params, len(self.layers)
        hidden, dtype = len(first.recurrent_weights), first.bias.dtype
        return zero_carry(first.cell, count, hidden, input_shape, dtype)

    def load(self, layers: tuple[LayerParams, ...]) -> None:
        """Copies the values of other layers, such as `flax_weights.nnx_layer` returns.

        Raises:
          InputError: their number, cells or shapes differ.
        """
        layers = tuple(map(merge_biases, layers))
        new_shapes, shapes = (jax.tree.map(jnp.shape, params) for params in (layers, self.params))
        if new_shapes != shapes:
            raise InputError(
                f"layers of the shapes {new_shapes}: this module has {shapes}; make it with the"
                " cell and the sizes of the layers"
            )
        for layer, new in zip(self.layers, layers, strict=True):
            for name in _NAMES:
                param = getattr(layer, name)
                param[...] = getattr(new, name).astype(param[...].dtype)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
    ) -> Any:
        """Runs all layers over all time steps.

        The last two arguments are as for `nnx.Dropout`, the others as for `nnx.RNN`; see
        `flax_sequences.run_sequences`. A single stream named `carry` or `default` does not count,
        since it is what `nnx.Bidirectional` hands on from an `Rngs`; one of another name draws the
        masks.
        """
        if isinstance(rngs, nnx.RngStream) and rngs.tag in ("carry", "default"):
            rngs = None  # nnx.Bidirectional's for carries, which start from zeros here
        if isinstance(rngs, jax.Array):
            rngs = nnx.Rngs(dropout=rngs)  # each site draws its own mask from it

        def drop(x: jax.Array) -> jax.Array:
            return self.dropout(x, deterministic=deterministic, rngs=rngs)

        return run_sequences(
            self.params,
            inputs,
            initial_carry,
            seq_lengths,
            drop=drop,
            drop_output=self.drop_output,
            options=_options(self, time_major, return_carry, reverse, keep_order),
            compute=self.compute,
        )


def _options(module: "DeepRNN | LinenDeepRNN", *given: bool | None) -> SequenceOptions:
    """What a call was given, in the record's order, else the module's attributes of these names."""
    own = (getattr(module, name) for name in SequenceOptions._fields)
    return SequenceOptions(*(x if y is None else y for x, y in zip(own, given, strict=True)))


class _LinenLayer(nn.Module):
    """The parameters of one layer."""

    cell: CellName
    shapes: Any
    inits: Any
    parts: int
    dtype: Any

    @nn.compact
    def __call__(self) -> LayerParams:
        values = [
            self.param(name, _in_parts(init, self.parts), shape, self.dtype)
            for name, init, shape in zip(_NAMES, self.inits, self.shapes, strict=True)
        ]
        return LayerParams(*values, cell=self.cell)


class LinenDeepRNN(nn.Module):
    """`DeepRNN` for linen, called like `nn.RNN`.

    Its attributes are the arguments of `DeepRNN`, except that `features` is the number of
    units, the size of the inputs is inferred, and by default each gate is drawn on its own, as by
    the cells of linen. Its parameters are `layers_0` and so on,
    each with `input_weights`, `recurrent_weights` and `bias`. With dropout, `deterministic`
    must be given here or in the call, as for `nn.Dropout`. For jvp, jacfwd or hessian use
    `ComputeConfig(kernel="scan")` without bfloat16.
    """

    features: int
    layers: int = 1
    cell: CellName = "lstm"
    dropout: float = 0.0
    drop_output: bool = True
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    deterministic: bool | None = None
    draw_each_gate: bool = True
    kernel_init: Initializer = _KERNEL
    recurrent_kernel_init: Initializer = _RECURRENT_KERNEL
    bias_init: Initializer = _BIAS
    param_dtype: DTypeLike = jnp.float32
    compute: ComputeConfig = ComputeConfig()

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: tuple[int, ...]) -> Carry:
        """The zeros before the first step of inputs [*batch, features]; `rng` is not used."""
        return zero_carry(self.cell, self.layers, self.features, input_shape, self.param_dtype)

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """Runs all layers over all time steps; see `run_sequences`. `init_key` is not used."""
        _check(
            self.cell,
            self.dropout,
            in_features=inputs.shape[-1],
            features=self.features,
            layers=self.layers,
            unroll=self.unroll,
        )
        parts = len(CELLS[self.cell].gates) if self.draw_each_gate else 1
        inits = self.kernel_init, self.recurrent_kernel_init, self.bias_init
        shapes = _shapes(inputs.shape[-1], self.features, self.layers, self.cell)
        params = tuple(
            _LinenLayer(
                self.cell, of_layer, inits, parts, self.param_dtype, name=f"layers_{depth}"
            )()
            for depth, of_layer in enumerate(shapes)
        )
        dropout = nn.Dropout(self.dropout, deterministic=self.deterministic)

        def drop(x: jax.Array) -> jax.Array:
            return dropout(x, deterministic=deterministic) if self.dropout else x

        return run_sequences(
            params,
            inputs,
            initial_carry,
            seq_lengths,
            drop=drop,
            drop_output=self.drop_output,
            options=_options(self, time_major, return_carry, reverse, keep_order),
            compute=self.compute,
        )


def linen_params(layers: tuple[LayerParams, ...]) -> dict[str, dict[str, jax.Array]]:
    """The parameters of a `LinenDeepRNN` with these layers, such as `flax_weights` returns."""
    return {
        f"layers_{depth}": {name: getattr(layer, name) for name in _NAMES}
        for depth, layer in enumerate(map(merge_biases, layers))
    }


def _check(cell: str, dropout: float, **sizes: int) -> None:
    for name, size in sizes.items():
        whole_number(name, size, at_least=1)
    if cell not in CELLS:
        raise InputError(f"cell={cell!r}: must be one of {', '.join(CELLS)}")
    check_limits("dropout", dropout, at_least=0, below=1)


def _shapes(
    in_features: int, hidden: int, layers: int, cell: CellName
) -> list[tuple[tuple[int, ...], ...]]:
    """The shapes of each layer's weights and bias, in the order of `_NAMES`."""
    gates = len(CELLS[cell].gates) * hidden
    sizes = (in_features,) + (hidden,) * (layers - 1)
    return [((size, gates), (hidden, gates), (gates,)) for size in sizes]


def _in_parts(init: Initializer, parts: int) -> Initializer:
    """Draws parts of an array's last axis separately, such as its gates."""

    def draw(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None):
        *lead, last = shape
        keys = jax.random.split(key, parts) if parts > 1 else [key]
        wide = at_least_float32(dtype)  # `orthogonal` does not draw in half precision
        return _side_by_side([init(key, (*lead, last // parts), wide) for key in keys], dtype)

    return draw


def _side_by_side(parts: list[Any], dtype: DTypeLike) -> Any:
    """Concatenates arrays, in the box that `with_partitioning` may have put around each."""
    box = parts[0]
    if isinstance(box, nnx.VariableMetadata):
        values = [part.raw_value for part in parts]
        return dataclasses.replace(box, raw_value=_side_by_side(values, dtype))
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1).astype(dtype), *parts)
