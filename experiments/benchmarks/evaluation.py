"""The time of evaluation as one stream, by which results are reported.

The state runs from the first token to the last, so that no two stretches of a text can be read
side by side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.benchmarks.contenders import OURS, Contender
from experiments.benchmarks.step_times import Quartiles, quartiles
from experiments.benchmarks.torch_peer import build_torch_reader
from experiments.training.turns import Turn, take_turns
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import TOKENS_AT_ONCE, text_nll
from zaremba_jax.model import Model, init_params

TOKENS = 2 * TOKENS_AT_ONCE  # that are predicted in a turn


def build_reader(config: Config, ids: np.ndarray) -> Turn:
    """This library, as `experiments.ptb` evaluates a trained model."""
    params = init_params(config.model, PTB_VOCABULARY_SIZE, key=jax.random.key(config.seed))
    model = Model(params, config, Vocabulary(tuple(map(str, range(PTB_VOCABULARY_SIZE)))))

    def read() -> None:
        text_nll(model, ids)

    return read


# How those contenders evaluate that have a way to; the other peers have none here.
READERS: dict[str, Callable[[Config, np.ndarray], Turn]] = {
    OURS: build_reader,
    "torch": build_torch_reader,
}


def compare_evaluation(contenders: Sequence[Contender], rounds: int) -> dict[str, Quartiles]:
    """Microseconds per token of evaluation as one stream, by the names of those that have a reader.

    All take turns in one run; ensembles are left out.
    """
    ids = np.random.default_rng(0).integers(0, PTB_VOCABULARY_SIZE, TOKENS + 1)
    turns = {
        contender.name: READERS[contender.builder](contender.config, ids)
        for contender in contenders
        if contender.builder in READERS and contender.members == 1
    }
    seconds = take_turns(turns, rounds)
    return {name: quartiles(1e6 * took / TOKENS) for name, took in seconds.items()}


def print_evaluation(console: Console, results: dict[str, Any]) -> None:
    """Prints a line with everyone's median and quartiles."""
    told = ", ".join(
        f"{name} {of.median:,.0f} ({of.lower:,.0f}-{of.upper:,.0f})"
        for name, of in results["evaluation_us"].items()
    )
    console.print(f"Evaluation as one stream, microseconds per token: {told}.")
