"""The language model: embedding, deep RNN, softmax; and a trained model with its vocabulary."""

import dataclasses
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from zaremba_jax.array_types import (
    Key,
    LayerParams,
    Logits,
    Masks,
    ModelParams,
    Outputs,
    RNNState,
    SoftmaxParams,
    TokenNLL,
    Tokens,
)
from zaremba_jax.cells import CELLS, drop
from zaremba_jax.config import ComputeConfig, Config, ModelConfig, Precision
from zaremba_jax.data.vocabulary import Vocabulary, check_ids
from zaremba_jax.errors import InputError
from zaremba_jax.ops.embedding import embedding_lookup
from zaremba_jax.ops.products import transposed_in_memory
from zaremba_jax.ops.softmax import logits, softmax_nll
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.rnn import deep_rnn, zero_state


def init_params(config: ModelConfig, vocabulary_size: int, *, key: Key) -> ModelParams:
    """Draws every parameter, biases too, uniformly from ±`init_scale` (section 4.1).

    They are float32, or float64 under `jax_enable_x64`.
    """
    keys = iter(jax.random.split(key, (3 + config.second_bias) * config.layers + 3))

    def uniform(*shape: int) -> jax.Array:
        scale = config.init_scale
        return jax.random.uniform(next(keys), shape, minval=-scale, maxval=scale)

    features, sizes = config.features, config.layer_sizes

    def layer(depth: int) -> LayerParams:
        hidden, gates = sizes[depth], len(CELLS[config.cell].gates) * sizes[depth]
        return LayerParams(
            input_weights=uniform((features, *sizes)[depth], gates),
            recurrent_weights=uniform(hidden, gates),
            bias=uniform(gates),
            cell=config.cell,
            second_bias=uniform(gates) if config.second_bias else None,
        )

    return ModelParams(
        embedding=uniform(vocabulary_size, features),
        layers=tuple(map(layer, range(config.layers))),
        softmax=SoftmaxParams(
            weights=None if config.tie_weights else uniform(sizes[-1], vocabulary_size),
            bias=uniform(vocabulary_size),
        ),
    )


def param_shapes(config: ModelConfig, vocabulary_size: int) -> ModelParams:
    """The shapes of the parameters, without the parameters."""
    return jax.eval_shape(lambda: init_params(config, vocabulary_size, key=jax.random.key(0)))


def named_leaves(params: ModelParams) -> dict[str, Any]:
    """Every array, or its shape, by its path, such as `layers.0.bias`, in the order of its tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }


def count_params(params: ModelParams) -> int:
    """The number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class Unrolled(NamedTuple):
    """The network's results for a window, before the softmax."""

    outputs: Outputs  # h[t] of the last layer
    dropped: Outputs  # D(h[t]), which the softmax reads
    state: RNNState  # after the last step


def softmax_weights(
    params: ModelParams, precision: Precision = "float32"
) -> Float[Array, "hidden vocabulary"]:
    """The weights of the softmax layer, for products in a precision.

    Tied ones are the embedding's (Press & Wolf 2017, https://arxiv.org/abs/1608.05859).
    """
    weights = params.softmax.weights
    if weights is not None:
        return weights
    if precision == "float32":
        return params.embedding.T
    # XLA merges `.T` into the products, and a CPU has no bfloat16 product for a transposed factor:
    # it would multiply in float32, or refuse.
    return transposed_in_memory(params.embedding)


@struct.dataclass
class Predictor:
    """A network with its noise: that of a window in training, none or its expectation otherwise.

    All ways of reading a text with a trained model are compiled for this record.

    Attributes:
      params: the parameters.
      masks: the window's noise; to evaluate, None or, with zoneout, those of
        `regularizers.expected_masks`.
      compute: precision and kernel.
    """

    params: ModelParams
    masks: Masks | None = None
    compute: ComputeConfig = struct.field(pytree_node=False, default=ComputeConfig())

    def zero_state(self, batch_size: int) -> RNNState:
        """The state before the first token of `batch_size` streams."""
        return zero_state(self.params.layers, batch_size)

    def unroll(self, tokens: Tokens, state: RNNState) -> Unrolled:
        """Everything but the softmax; arguments and errors as for `apply`."""
        embedding, masks = self.params.embedding, self.masks or Masks()
        if jnp.finfo(embedding.dtype).bits < 32:
            raise InputError(
                f"parameters of {embedding.dtype}: too imprecise for training and for sums; keep"
                " them float32, and get bfloat16 products with"
                ' ComputeConfig(precision="bfloat16")'
            )
        # `scan` also supports forward-mode differentiation, which `embedding_lookup` does not.
        look = operator.getitem if self.compute.kernel == "scan" else embedding_lookup
        inputs = drop(look(embedding, tokens), masks.words)
        outputs, state = deep_rnn(self.params.layers, inputs, state, masks, self.compute)
        return Unrolled(outputs, drop(outputs, masks.output), state)

    def logits(self, hidden: Outputs) -> Logits:
        """The logits of the next token after each output D(h[t])."""
        return logits(*self._softmax(), hidden, self.compute)

    def nll_of(self, hidden: Outputs, targets: Tokens) -> TokenNLL:
        """The nats of each target after the output D(h[t])."""
        return softmax_nll(*self._softmax(), hidden, targets, self.compute)

    def _softmax(self) -> tuple[jax.Array, jax.Array]:
        return softmax_weights(self.params, self.compute.precision), self.params.softmax.bias

    def token_nll(
        self, tokens: Tokens, targets: Tokens, state: RNNState
    ) -> tuple[TokenNLL, RNNState]:
        """Negative log-likelihood, in nats, of `targets[t]` after the tokens up to t.

        Equals the cross-entropy of the logits of `apply`, with fewer passes over them;
        arguments and errors as there. Also returns the state after the last token.
        """
        unrolled = self.unroll(tokens, state)
        return self.nll_of(unrolled.dropped, targets), unrolled.state


def apply(
    params: ModelParams,
    tokens: Tokens,
    state: RNNState,
    masks: Masks | None = None,
    compute: ComputeConfig = ComputeConfig(),
) -> tuple[Logits, RNNState]:
    """Predicts, after each token, the next one.

    Args:
      params: the model.
      tokens: ids of a window of text; one that is not in the vocabulary is read as some word of
        it, unnoticed.
      state: one record per layer, from `rnn.zero_state` or from the previous window.
      masks: as for `Predictor`.
      compute: precision and kernel.

    Returns:
      The logits of the next token at every time step, and the state after the last.

    Raises:
      InputError: the parameters are in half precision.
    """
    predictor = Predictor(params, masks, compute)
    unrolled = predictor.unroll(tokens, state)
    return predictor.logits(unrolled.dropped), unrolled.state


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model with everything that using it takes.

    `train.train_windows` makes the parameters, `interop.model_file` stores and loads a model, and
    `evaluate.text_nll` and all of `inference` read texts with it. `inference.trained_model` adds
    methods for these, as `zaremba_jax.Model`.

    Attributes:
      params: the parameters.
      config: the configuration that they were trained with.
      vocabulary: the words that they stand for.
    """

    params: ModelParams
    config: Config
    vocabulary: Vocabulary

    @property
    def predictor(self) -> Predictor:
        """The network as its configuration has it evaluated, with zoneout's expectation."""
        return Predictor(self.params, expected_masks(self.config), self.config.compute)

    def check_ids(self, ids: np.ndarray) -> None:
        """Refuses ids that the model cannot read.

        Raises:
          InputError: an id is not in the vocabulary, or the vocabulary has not one word for each
            row of the embedding.
        """
        words, rows = len(self.vocabulary), len(self.params.embedding)
        if words != rows:
            raise InputError(
                f"a vocabulary of {words} for an embedding of {rows} rows: make the model with the"
                " vocabulary that its parameters were trained with"
            )
        check_ids(ids, rows)
