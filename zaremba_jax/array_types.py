"""The shape vocabulary and the records that the other modules pass to each other.

Time comes first everywhere: a window of text is `[time, batch]`, a layer's
sequence of activations is `[time, batch, features]`. The four gates of an LSTM
lie side by side on one axis of size `gates = 4 * hidden`, in the order
f, i, o, u (forget, input, output, update), the three sigmoids contiguous.
"""

import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

Tokens = Int[Array, "time batch"]
Window = Int[Array, "time_and_one batch"]
Windows = Int[Array, "windows time_and_one batch"]
Activations = Float[Array, "time batch features"]
Outputs = Float[Array, "time batch hidden"]
Logits = Float[Array, "time batch vocabulary"]
TokenNLL = Float[Array, "time batch"]
Scalar = Float[Array, ""]
Step = Int[Array, ""]
Key = PRNGKeyArray


@struct.dataclass
class LSTMState:
    """What an LSTM layer remembers between time steps: h and c of equations 1 to 6."""

    hidden: Float[Array, "batch hidden"]
    cell: Float[Array, "batch hidden"]


@struct.dataclass
class LSTMParams:
    """One LSTM layer: the affine maps T of its four gates, side by side as f, i, o, u."""

    input_weights: Float[Array, "features gates"]
    recurrent_weights: Float[Array, "hidden gates"]
    bias: Float[Array, " gates"]


@struct.dataclass
class SoftmaxParams:
    """The affine map from the last layer's output to the vocabulary's logits."""

    weights: Float[Array, "hidden vocabulary"]
    bias: Float[Array, " vocabulary"]


@struct.dataclass
class ModelParams:
    """Every trained number of the language model; `layers[0]` reads the embedding."""

    embedding: Float[Array, "vocabulary features"]
    layers: tuple[LSTMParams, ...]
    softmax: SoftmaxParams


@struct.dataclass
class DropoutMasks:
    """The factors of one window at its L + 1 dropout sites: 0, or 1 / (1 - rate).

    `inputs[l]` multiplies the input of layer l, `output` the last layer's output.
    """

    inputs: tuple[Activations, ...]
    output: Activations


@struct.dataclass
class TrainState:
    """All that a run needs to go on exactly as if it had never stopped.

    `step` counts the windows trained on since the first epoch began; with `key`
    it gives every dropout mask again.
    """

    params: ModelParams
    opt_state: optax.OptState
    rnn_state: tuple[LSTMState, ...]
    step: Step
    key: Key
