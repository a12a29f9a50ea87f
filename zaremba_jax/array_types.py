"""The array types and records that the other modules pass to each other.

Time comes first everywhere: a window of text is `[time, batch]`, a layer's
sequence of activations is `[time, batch, features]`. The gates of a cell lie side
by side on one axis: for an LSTM `gates = 4 * hidden`, in the order f, i, o, u
(forget, input, output, update; the paper's g is u), the three sigmoids contiguous; for a GRU
`3 * hidden`, in the order r, z, n (reset, update gate, candidate); for the tanh
cell `hidden`.
"""

from typing import Literal

import optax
from flax import struct
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

Tokens = Int[Array, "time batch"]
# Of unroll + 1 tokens of each stream: window[:-1] are the inputs, window[1:] their targets.
Window = Integer[Array, "time_and_one batch"]
Windows = Integer[Array, "windows time_and_one batch"]
Activations = Float[Array, "time batch features"]
Outputs = Float[Array, "time batch hidden"]
Logits = Float[Array, "time batch vocabulary"]
TokenNLL = Float[Array, "time batch"]
Scalar = Float[Array, ""]
Step = Int[Array, ""]
Key = PRNGKeyArray
# A factor for every unit at every time step; an axis of size 1 is broadcast.
Mask = Float[Array, "#time #batch #hidden"]
CellName = Literal["lstm", "gru", "tanh"]


@struct.dataclass
class LSTMState:
    """What an LSTM layer carries between time steps: h and c."""

    hidden: Float[Array, "batch hidden"]
    cell: Float[Array, "batch hidden"]


@struct.dataclass
class HiddenState:
    """What a GRU or a tanh layer carries between time steps: h."""

    hidden: Float[Array, "batch hidden"]


LayerState = LSTMState | HiddenState
RNNState = tuple[LayerState, ...]


@struct.dataclass
class LayerParams:
    """One recurrent layer: the affine maps T of its gates, side by side, and its cell type.

    `second_bias`, if there is one, is added to the first.
    """

    input_weights: Float[Array, "features gates"]
    recurrent_weights: Float[Array, "hidden gates"]
    bias: Float[Array, " gates"]
    cell: CellName = struct.field(pytree_node=False, default="lstm")
    second_bias: Float[Array, " gates"] | None = None


@struct.dataclass
class SoftmaxParams:
    """The affine map from the last layer's output to the vocabulary's logits.

    `weights` are None in a model that ties them to its embedding.
    """

    weights: Float[Array, "hidden vocabulary"] | None
    bias: Float[Array, " vocabulary"]


@struct.dataclass
class ModelParams:
    """Every trained parameter of the language model; `layers[0]` reads the embedding."""

    embedding: Float[Array, "vocabulary features"]
    layers: tuple[LayerParams, ...]
    softmax: SoftmaxParams


@struct.dataclass
class RecurrentMasks:
    """The masks on a layer's connections through time; None for those that are off.

    `hidden` multiplies h[t-1] where it enters the gates, `update` what the cell
    writes into its state. `zoneout_hidden` and `zoneout_cell` are the fractions of h[t] and
    c[t] that are carried over from the previous step.
    """

    hidden: Mask | None = None
    update: Mask | None = None
    zoneout_hidden: Mask | None = None
    zoneout_cell: Mask | None = None


@struct.dataclass
class Masks:
    """The noise of one window; None for what is off.

    `words` multiplies the embedding of each token, `inputs[l]` the input of layer l,
    `output` the last layer's output: with `inputs`, the paper's L + 1 dropout sites.
    A dropout mask holds 0 and 1 / (1 - rate).
    """

    words: Float[Array, "time batch 1"] | None = None
    inputs: tuple[Mask | None, ...] | None = None
    output: Mask | None = None
    recurrent: tuple[RecurrentMasks, ...] | None = None


@struct.dataclass
class TrainState:
    """Everything a run needs to resume exactly as if it had never stopped.

    `step` counts the windows trained on since the first epoch began; together with
    `key` it reproduces every dropout mask. `average`, where the settings ask for it, is the mean
    of the parameters, equal to them until averaging begins; `best`, likewise, those of the best
    epoch so far.
    """

    params: ModelParams
    opt_state: optax.OptState
    rnn_state: RNNState
    step: Step
    key: Key
    average: ModelParams | None = None
    best: ModelParams | None = None

    @property
    def model(self) -> ModelParams:
        """The parameters to evaluate after an epoch."""
        return self.params if self.average is None else self.average

    @property
    def result(self) -> ModelParams:
        """The parameters that a run would end with; who trains with `keep="best"` renews `best`."""
        return self.model if self.best is None else self.best


@struct.dataclass
class WindowStatistics:
    """What one step of training measured: the mean nats per token, with the noise on, and the
    global norm of the gradient before clipping.
    """

    nll: Float[Array, "*windows"]
    gradient_norm: Float[Array, "*windows"]
