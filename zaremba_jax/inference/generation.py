"""Text from a model or a mixture of models, drawn token by token on the device."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zaremba_jax.array_types import Key, RNNState, Tokens
from zaremba_jax.data.units import UNK
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.ensemble import mixture_log_probs
from zaremba_jax.errors import InputError
from zaremba_jax.limits import check_limits, whole_number
from zaremba_jax.model import Model, Predictor

Scores = Float[Array, "samples vocabulary"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from the predicted probabilities; by default, they are not changed.

    `temperature` divides the log-probabilities; 0 takes the most probable token. Then
    `top_k` keeps that many of the most probable tokens (Fan et al. 2018,
    https://arxiv.org/abs/1805.04833), 0 all of them; of these, `top_p` keeps the fewest whose
    probabilities add up to at least this (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    Before all of that, the tokens with the ids `never` are left out, such as `<unk>`.

    Raises:
      InputError: a value is outside its limits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    never: Sequence[int] = ()

    def __post_init__(self):
        object.__setattr__(self, "never", tuple(self.never))  # static, so hashed
        check_limits("temperature", self.temperature, at_least=0)
        top_k = whole_number("top_k", self.top_k)
        if top_k < 0:
            raise InputError(f"top_k={top_k}: must be at least 1, or 0 for no limit")
        object.__setattr__(self, "top_k", top_k)
        check_limits("top_p", self.top_p, above=0, at_most=1)


def unknown_id(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The id of `<unk>`, for `Sampling.never`; nothing if there is none, or no other word."""
    words = vocabulary.words
    return (words.index(UNK),) if UNK in words and len(words) > 1 else ()


def generate(
    models: Sequence[Model],
    prompt: Int[np.ndarray, " prompt"],
    length: int,
    samples: int = 1,
    sampling: Sampling = Sampling(),
    *,
    key: Key,
    until: int | None = None,
) -> Int[np.ndarray, "samples length"]:
    """Continues a prompt, drawing several samples side by side.

    At each step the models' probabilities are averaged (Zaremba et al. 2014, section 4.1),
    and every model reads the token drawn. Compiled anew for every length of the prompt and every
    `length`, `samples`, `sampling` and `until`.

    Args:
      models: with one vocabulary; their sizes and cells may differ.
      prompt: ids that are read first, from the zero state; start with `<eos>` to begin a line.
      length: how many tokens to draw, across line ends.
      samples: how many texts; a text does not depend on how many others there are.
      sampling: how to draw; static.
      key: determines everything that is drawn.
      until: the id of a token that ends a text, such as `<eos>`. It fills the text's row from there
        on; drawing stops when all texts have ended.

    Raises:
      InputError: there is no model, no token in the prompt or nothing to draw, the models
        have different vocabularies, `never` leaves no token, or as for `Model.check_ids`.
    """
    length = whole_number("length", length, at_least=1)
    samples = whole_number("samples", samples, at_least=1)
    if not len(models) or not len(prompt):
        raise InputError(
            f"a prompt of {len(prompt)} tokens for {len(models)} models: give at least one of each"
        )
    if len({model.vocabulary.fingerprint for model in models}) > 1:
        raise InputError("models with different vocabularies: use models trained on one corpus")
    ends = [] if until is None else [until]
    for model in models:
        model.check_ids(np.array([*prompt, *sampling.never, *ends]))
    if len(set(sampling.never)) == len(models[0].vocabulary):
        raise InputError(f"never={sampling.never}: leaves no token to draw; name fewer")
    predictors = tuple(model.predictor for model in models)
    begin = jnp.asarray(prompt)[:, None]
    return np.asarray(_generate(predictors, begin, key, length, samples, sampling, until)).T


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _generate(
    predictors: tuple[Predictor, ...],
    prompt: Tokens,
    key: Key,
    length: int,
    samples: int,
    sampling: Sampling,
    until: int | None,
) -> Int[Array, "length samples"]:
    def predict(tokens: Tokens, states: tuple[RNNState, ...]) -> tuple[Scores, tuple]:
        scores, new_states = [], []
        for predictor, state in zip(predictors, states, strict=True):
            unrolled = predictor.unroll(tokens, state)
            scores.append(predictor.logits(unrolled.dropped[-1:])[0])
            new_states.append(unrolled.state)
        return mixture_log_probs(jnp.stack(scores)), tuple(new_states)

    def step(carry: tuple) -> tuple:
        position, ended, drawn, scores, states = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        tokens = jax.vmap(functools.partial(sample_token, sampling))(scores, step_keys)
        drawn = drawn.at[position].set(jnp.where(ended, drawn[position], tokens))
        if until is not None:
            ended |= tokens == until
        return position + 1, ended, drawn, *predict(tokens[None, :], states)

    def goes_on(carry: tuple) -> jax.Array:
        position, ended, *_ = carry
        return (position < length) & ~ended.all()

    def for_every_sample(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (samples, *x.shape[1:]))

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(samples))
    read = predict(prompt, tuple(p.zero_state(batch_size=1) for p in predictors))
    drawn = jnp.full((length, samples), 0 if until is None else until, jnp.int32)
    nothing_yet = jnp.int32(0), jnp.zeros(samples, bool), drawn
    begin = (*nothing_yet, *jax.tree.map(for_every_sample, read))
    return jax.lax.while_loop(goes_on, step, begin)[2]


def sample_token(
    sampling: Sampling, scores: Float[Array, " vocabulary"], key: Key
) -> Int[Array, ""]:
    """Draws a token from logits or log-probabilities."""
    if sampling.never:
        scores = scores.at[jnp.array(sampling.never)].set(-jnp.inf)
    if sampling.temperature < jnp.finfo(scores.dtype).tiny:  # which some devices flush to 0
        return scores.argmax()
    return jax.random.categorical(key, filter_logits(sampling, scores))


def filter_logits(
    sampling: Sampling, scores: Float[Array, " vocabulary"]
) -> Float[Array, " vocabulary"]:
    """The logits to draw from: -inf for tokens that the sampling leaves out.

    Tokens as probable as the last one kept are kept too. The temperature must be above 0.
    """
    scores = (scores - scores.max()) / sampling.temperature  # the largest stays finite
    if 0 < sampling.top_k < len(scores):
        scores = _at_least(scores, jax.lax.top_k(scores, sampling.top_k)[0][-1])
    if sampling.top_p < 1:
        ordered = jnp.flip(jnp.sort(scores))
        probabilities = jax.nn.softmax(ordered)
        more_probable = jnp.cumsum(probabilities) - probabilities
        kept = jnp.where(more_probable < sampling.top_p, ordered, jnp.inf)
        scores = _at_least(scores, jnp.minimum(kept.min(), ordered[0]))  # top_p may round to 0
    return scores


def _at_least(scores: Float[Array, " vocabulary"], least: jax.Array) -> jax.Array:
    return jnp.where(scores >= least, scores, -jnp.inf)
