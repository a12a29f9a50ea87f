"""A model that keeps learning while it is evaluated, and is pulled back to its trained values.

Krause, Kahembwe, Murray & Renals (2018), *Dynamic Evaluation of Neural Sequence Models*,
https://arxiv.org/abs/1709.07432, section 3. A text is read in segments; each is predicted
first, and then the parameters take one step on its loss L, the mean nats per token:

    sgd: p <- p - rate * grad L + decay * (trained - p)
    rms: p <- p - rate * grad L / (rms + epsilon) + decay * norm * (trained - p)

`rms` is the root of the mean square of each parameter's gradient over the training text,
`norm` is rms divided by its mean over all parameters, at most 1 / decay.
"""

import dataclasses
import functools
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import ModelParams, RNNState, Scalar, TokenNLL, Tokens, Window, Windows
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import TOKENS_AT_ONCE, count_predictions
from zaremba_jax.limits import check_limits, whole_number
from zaremba_jax.model import Model, Predictor

Rule = Literal["sgd", "rms"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """How a model adapts.

    Raises:
      InputError: a value is outside its limits.
    """

    rule: Rule
    rate: float
    decay: float
    segment: int = 5  # tokens between two steps
    epsilon: float = 4e-4  # for rms: bounds the steps of parameters with hardly any gradient

    def __post_init__(self):
        if self.rule not in get_args(Rule):
            rules = ", ".join(get_args(Rule))
            raise InputError(f"dynamic_rule={self.rule!r}: must be one of {rules}")
        check_limits("dynamic_rate", self.rate, at_least=0)
        check_limits("dynamic_decay", self.decay, at_least=0, at_most=1)
        # The smallest normal float32; words never read have no gradient.
        least = 1.2e-38 if self.rule == "rms" else 0
        check_limits("dynamic_epsilon", self.epsilon, at_least=least)
        segment = whole_number("dynamic_segment", self.segment, at_least=1)
        object.__setattr__(self, "segment", segment)


def mean_squares(model: Model, windows: Windows) -> ModelParams:
    """The mean square of each parameter's gradient over windows of text, noise off.

    The gradient is that of the mean over all streams of a window, so more streams give
    smaller squares; the default epsilon of `DynamicConfig` was found with 100.

    Args:
      model: the trained model.
      windows: of the training text, from `data.windows.windows`, each as long as a segment.

    Raises:
      InputError: as for `Model.check_ids`.
    """
    model.check_ids(np.ravel(windows))
    return _mean_squares(model.predictor, windows)


@jax.jit
def _mean_squares(predictor: Predictor, windows: Windows) -> ModelParams:

    def add(carry: tuple[ModelParams, RNNState], window: Window) -> tuple[tuple, None]:
        total, state = carry
        gradient, (_, state) = _gradient(predictor, window[:-1], window[1:], state)
        total = jax.tree.map(lambda t, g: t + jnp.square(g), total, gradient)
        return (total, state), None

    zeros = jax.tree.map(jnp.zeros_like, predictor.params)
    state = predictor.zero_state(windows.shape[-1])
    (total, _), _ = jax.lax.scan(add, (zeros, state), windows)
    return jax.tree.map(lambda t: t / len(windows), total)


def dynamic_nll(
    model: Model, ids: np.ndarray, config: DynamicConfig, squares: ModelParams | None = None
) -> np.ndarray:
    """`evaluate.text_nll` with one stream, for a model that adapts to what it has read.

    Args:
      model: the trained model, which is not modified.
      ids: the text, [N] with N at least 2.
      config: how to adapt.
      squares: from `mean_squares`; the rule rms needs them.

    Raises:
      InputError: the text has no token to predict, the rule is rms and there are no squares, or as
        for `Model.check_ids`.
    """
    model.check_ids(ids)
    predictions = count_predictions(ids)
    segment = min(config.segment, predictions)  # what would pad a longer one changes nothing
    at_once = min(max(TOKENS_AT_ONCE // segment, 1), -(-predictions // segment))
    padded = np.pad(ids, (0, -predictions % (at_once * segment)))
    inputs, targets = (
        jnp.asarray(tokens.reshape(-1, at_once, segment, 1), jnp.int32)
        for tokens in (padded[:-1], padded[1:])
    )
    sizes = step_sizes(model.params, config, squares)
    # Copies, since its buffers are donated, each of them once; layers may share their masks.
    adapted = jax.tree.map(jnp.copy, model.predictor)
    state, results = adapted.zero_state(batch_size=1), []
    for chunk in zip(inputs, targets, strict=True):
        nll, adapted, state = _read(model.params, adapted, state, *chunk, sizes)
        results.append(nll.reshape(-1))
    return np.concatenate(results)[:predictions]


def step_sizes(
    params: ModelParams, config: DynamicConfig, squares: ModelParams | None
) -> tuple[ModelParams, ModelParams]:
    """The factors of each parameter's gradient and of its distance to the trained value.

    Arguments as for `dynamic_nll`.

    Raises:
      InputError: the rule is rms and there are no squares.
    """
    if config.rule == "sgd":
        rate, decay = jnp.asarray(config.rate), jnp.asarray(config.decay)
        return jax.tree.map(lambda _: rate, params), jax.tree.map(lambda _: decay, params)
    if squares is None:
        raise InputError("the rule rms needs the mean squares of gradients; give them, or use sgd")
    rms = jax.tree.map(jnp.sqrt, squares)
    leaves = jax.tree.leaves(rms)
    mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return (
        jax.tree.map(lambda x: config.rate / (x + config.epsilon), rms),
        jax.tree.map(lambda x: jnp.minimum(config.decay * x / mean, 1), rms),
    )


@functools.partial(jax.jit, donate_argnames="adapted")
def _read(
    trained: ModelParams,
    adapted: Predictor,
    state: RNNState,
    inputs: jax.Array,
    targets: jax.Array,
    sizes: tuple[ModelParams, ModelParams],
) -> tuple[jax.Array, Predictor, RNNState]:
    """Predicts segments [segments, time, 1] and learns from each before the next."""

    def step(p, gradient, start, rate, decay):
        return p - rate * gradient + decay * (start - p)

    def read(
        carry: tuple[Predictor, RNNState], segment: tuple[Tokens, Tokens]
    ) -> tuple[tuple, TokenNLL]:
        adapted, state = carry
        gradient, (nll, state) = _gradient(adapted, *segment, state)
        params = jax.tree.map(step, adapted.params, gradient, trained, *sizes)
        return (dataclasses.replace(adapted, params=params), state), nll

    (adapted, state), nll = jax.lax.scan(read, (adapted, state), (inputs, targets))
    return nll, adapted, state


def _gradient(
    predictor: Predictor, inputs: Tokens, targets: Tokens, state: RNNState
) -> tuple[ModelParams, tuple[TokenNLL, RNNState]]:
    """The gradient of the mean nats per token; also the nats, and the state after them."""

    def loss(params: ModelParams) -> tuple[Scalar, tuple[TokenNLL, RNNState]]:
        adapted = dataclasses.replace(predictor, params=params)
        nll, new_state = adapted.token_nll(inputs, targets, state)
        return nll.mean(), (nll, new_state)

    return cast(Any, jax.grad(loss, has_aux=True)(predictor.params))
