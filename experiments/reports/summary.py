"""What a finished run reports: the final perplexities, in a record and in a table."""

import math
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.reports.environment import environment
from experiments.training.identity import is_of_the_paper
from experiments.training.single_run import SingleRun
from zaremba_jax.config import PAPER_PERPLEXITIES, Config, to_dict
from zaremba_jax.data.corpus import unigram_perplexity
from zaremba_jax.data.units import UNITS
from zaremba_jax.evaluate import monte_carlo_nll, perplexity
from zaremba_jax.model import count_params


def summarize(
    run: SingleRun, valid: np.ndarray, test: np.ndarray, mc_samples: int = 0
) -> dict[str, Any]:
    """Gathers the record of a trained run.

    Args:
      run: the run.
      valid: nats of every token of the validation text but the first, by `SingleRun.nll`: one
        stream, state carried from the first token to the last.
      test: the same for the test text.
      mc_samples: samples of Monte Carlo dropout, over the same tokens; 0: none.
    """
    config, corpus, params = run.config, run.corpus, run.params
    unused_key = jax.random.fold_in(run.state.key, run.state.step)  # of the step after the last

    def monte_carlo(ids: np.ndarray) -> float | None:
        if mc_samples == 0:
            return None
        return perplexity(monte_carlo_nll(run.model(), ids, mc_samples, key=unused_key))

    paper_valid, paper_test = paper_perplexity(config)
    return {
        "name": config.name,
        "corpus": corpus.name,
        "unit": corpus.vocabulary.unit,
        "config": to_dict(config),
        "kernel": run.kernel,
        "seed": config.seed,
        "epochs": config.train.epochs,
        "parameters": count_params(params),
        "valid_perplexity": perplexity(valid),
        "test_perplexity": perplexity(test),
        "valid_bits": math.log2(perplexity(valid)),
        "test_bits": math.log2(perplexity(test)),
        "mc_samples": mc_samples,
        "mc_valid_perplexity": monte_carlo(corpus.valid),
        "mc_test_perplexity": monte_carlo(corpus.test),
        "unigram_perplexity": unigram_perplexity(corpus),
        "floor_perplexity": corpus.floor_perplexity,
        "paper_valid_perplexity": paper_valid,
        "paper_test_perplexity": paper_test,
        "words_per_second": float(np.median([m["words_per_second"] for m in run.journal.history])),
        "seconds": run.journal.seconds,
        **environment(),
    }


def paper_perplexity(config: Config, members: int = 1) -> tuple[float | None, float | None]:
    """The paper's validation and test figures for this model, whatever its seed, if any."""
    if not is_of_the_paper(config):
        return None, None
    return PAPER_PERPLEXITIES.get(config.name, {}).get(members, (None, None))


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Prints the final perplexities, and the figures to compare them with."""
    table = Table(title=f"Perplexity: {summary['corpus']}, {summary['name']}")
    table.add_column("")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for label, valid, test in (
        ("this run", "valid_perplexity", "test_perplexity"),
        (
            f"Monte Carlo, {summary['mc_samples']} samples",
            "mc_valid_perplexity",
            "mc_test_perplexity",
        ),
        ("the paper", "paper_valid_perplexity", "paper_test_perplexity"),
        ("floor of the source", None, "floor_perplexity"),
        ("unigram", None, "unigram_perplexity"),
    ):
        figures = [None if name is None else summary[name] for name in (valid, test)]
        if figures[1] is not None:
            table.add_row(label, *("" if f is None else f"{f:.2f}" for f in figures))
    unit = UNITS[summary["unit"]]
    if unit.reported_in_bits:
        bits = (f"{summary[name]:.3f}" for name in ("valid_bits", "test_bits"))
        table.add_row(f"bits per {unit.noun}", *bits)
    console.print(table)
