"""The ablation's language models: every regularizer on every cell, all on the same terms.

The seeds and candidates of all methods of a cell train side by side in one program, which
has every method's settings on; a member sets the rates of the other methods to 0. Only the
variational masks, drawn once per window, need a program of their own.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.ablations.methods import METHODS, groups, member_rates
from experiments.ablations.parts import Part
from zaremba_jax.array_types import CellName, ModelParams, Scalar, TrainState, Windows
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.windows import windows
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.model import Model, Predictor
from zaremba_jax.regularizers import Rates
from zaremba_jax.train import better_of, init_train_state, train_windows

TASK = "language_modelling"
VALIDATION_STREAMS, VALIDATION_TOKENS = 20, 2020  # 5 windows; tokens of the built-in corpus
# For the first half of the epochs, the same for all methods; at 1.0 the tanh cell is erratic.
LEARNING_RATES: dict[CellName, float] = {"lstm": 1.0, "gru": 0.5, "tanh": 0.2}


@struct.dataclass
class Member:
    """A model in training, and its parameters after the epoch that validated best."""

    state: TrainState
    best: ModelParams
    best_nll: Scalar


def language_parts(
    base: Config,
    corpus: Corpus,
    cells: Sequence[CellName],
    methods: Sequence[str],
    *,
    seeds: int,
    count: int,
) -> list[Part]:
    """A part for each cell and group of methods; arguments as for `compare_language_models`."""
    return [
        Part(
            TASK,
            cell,
            base.train.epochs,
            functools.partial(
                compare_language_models, base, corpus, cell, group, seeds=seeds, count=count
            ),
        )
        for group in groups(methods)
        for cell in cells
    ]


def compare_language_models(
    base: Config,
    corpus: Corpus,
    cell: CellName,
    group: Sequence[str],
    *,
    seeds: int,
    count: int,
    on_progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Trains a group of methods in one program, chooses by validation, and only then tests.

    Args:
      base: the configuration of all models, except cell, learning rate and regularizers.
      corpus: the texts.
      cell: of all models.
      group: one of `methods.groups`.
      seeds: runs of each candidate, from `base.seed` on.
      count: candidates of each method.
      on_progress: called after each epoch with a line on what has been trained.

    Returns:
      The record of each method, by `choose_and_test`.
    """
    candidates = {name: METHODS[name].candidates(count) for name in group}
    all_rates = list(itertools.chain.from_iterable(candidates.values()))
    used = dict(setting for rates in all_rates for setting in rates.items())
    settings = {"cell": cell, "learning_rate": LEARNING_RATES[cell], **used}
    config = override(base, mask_each=METHODS[group[0]].mask_each, **settings)
    members = _init(config, len(corpus.vocabulary), seeds, copies=len(all_rates))
    text = jnp.asarray(windows(corpus.train, base.train.batch_size, base.train.unroll))
    valid = jnp.asarray(windows(corpus.valid, VALIDATION_STREAMS, base.train.unroll))
    curves = []
    for epoch in range(config.train.epochs):
        members, nll = train_epoch(config, members, member_rates(all_rates, seeds), text, valid)
        curves.append(np.asarray(nll, np.float64))
        on_progress(f"{cell}: {', '.join(group)}; epoch {epoch + 1}")
    with np.errstate(over="ignore"):
        curve = np.exp(np.stack(curves, axis=-1)).reshape(len(all_rates), seeds, -1)
    best = jax.tree.map(lambda x: x.reshape(-1, seeds, *x.shape[1:]), members.best)

    def test_perplexity(params: ModelParams) -> float:
        return perplexity(text_nll(Model(params, config, corpus.vocabulary), corpus.test))

    records, start = {}, 0
    for name, method_rates in candidates.items():
        span = slice(start, start + len(method_rates))
        params = jax.tree.map(lambda x, span=span: x[span], best)
        records[name] = choose_and_test(method_rates, curve[span], params, test_perplexity)
        start = span.stop
    return records


def _init(config: Config, vocabulary_size: int, seeds: int, copies: int) -> Member:
    """Models of every seed, repeated for each candidate."""

    def member(seed: int) -> Member:
        state = init_train_state(override(config, seed=seed), vocabulary_size)
        return Member(state, state.params, jnp.array(jnp.inf))

    members = [member(config.seed + seed) for seed in range(seeds)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves * copies), *members)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="members")
def train_epoch(
    config: Config, members: Member, rates: Rates, text: Windows, valid: Windows
) -> tuple[Member, jax.Array]:
    """Trains all members for one epoch, each at its own rates.

    Returns:
      The members, and the validation nats per token of each.
    """

    def train(member: Member, rates: Rates) -> tuple[Member, Scalar]:
        state, _ = train_windows(config, member.state, text, rates)
        nll = validation_nll(state.params, valid)
        best = better_of(state.params, member.best, nll < member.best_nll)
        return Member(state, best, jnp.fmin(nll, member.best_nll)), nll

    return jax.vmap(train)(members, rates)


def validation_nll(params: ModelParams, text: Windows) -> Scalar:
    """Mean nats per token, dropout off, of a text that is cut into streams and windows."""

    def read(state, window):
        nll, state = predictor.token_nll(window[:-1], window[1:], state)
        return state, nll.mean()

    predictor = Predictor(params)
    state = predictor.zero_state(text.shape[-1])
    return jax.lax.scan(read, state, text)[1].mean()


def choose_and_test(
    candidates: list[dict[str, float]],
    valid: np.ndarray,
    best: Any,
    test_perplexity: Callable[[ModelParams], float],
) -> dict[str, Any]:
    """Chooses by the mean of seeds' best epochs, and reads the test text with that candidate only.

    None is chosen that has a seed whose perplexity was not finite after some epoch.

    Args:
      candidates: the rates of each.
      valid: perplexities, [candidates, seeds, epochs].
      best: `ModelParams` of the epochs that validated best, leaves [candidates, seeds, ...].
      test_perplexity: the test text's perplexity under a model with these parameters.

    Returns:
      `candidates` with the rates, the validation perplexity, and how many seeds
      `diverged`; the index of the `chosen` one, if any; its validation `curves` by seed and
      epoch; its `test` perplexity by seed.
    """
    diverged = (~np.isfinite(valid)).any(axis=2).sum(axis=1).tolist()
    lowest = valid.min(axis=2).mean(axis=1).tolist()
    finite = [index for index, lost in enumerate(diverged) if not lost]
    chosen, tests = min(finite, key=lowest.__getitem__, default=None), []
    for seed in range(0 if chosen is None else valid.shape[1]):
        params = jax.tree.map(lambda x, seed=seed: x[chosen, seed], best)
        tests.append(test_perplexity(params))
    return {
        "candidates": [
            {"rates": rates, "validation": None if lost else low, "diverged": lost}
            for rates, low, lost in zip(candidates, lowest, diverged, strict=True)
        ],
        "chosen": chosen,
        "curves": [] if chosen is None else valid[chosen].round(3).tolist(),
        "test": tests,
    }
