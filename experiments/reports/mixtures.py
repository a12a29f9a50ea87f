"""Perplexity by the number of members averaged: the record and the table."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.reports.environment import environment
from experiments.reports.statistics import deviation, format_spread
from experiments.reports.summary import paper_perplexity
from experiments.training.ensemble_run import EnsembleRun
from zaremba_jax.config import Config, to_dict
from zaremba_jax.data.corpus import Corpus, unigram_perplexity
from zaremba_jax.ensemble import MemberNLL, mixture_perplexities
from zaremba_jax.evaluate import perplexity

DEFAULT_SIZES = (1, 2, 5, 10, 38)  # the paper's


def sizes_for(asked: list[int] | None, members: int) -> list[int]:
    """The numbers of members to average, none above `members`, which is always included."""
    return sorted({min(size, members) for size in (*(asked or DEFAULT_SIZES), members)})


def summarize_mixtures(
    config: Config,
    corpus: Corpus,
    valid: MemberNLL,
    test: MemberNLL,
    sizes: list[int],
    alike: bool = True,
) -> dict[str, Any]:
    """The record of all mixtures.

    Args:
      config: of the first member.
      corpus: the texts.
      valid: nats of every token of the validation text, one row per member.
      test: the same for the test text.
      sizes: numbers of members to average.
      alike: whether all members have this configuration, so that the paper's figures for it
        apply.
    """

    def mixture(size: int) -> dict[str, Any]:
        measured = {
            name: mixture_perplexities(nll, size)
            for name, nll in (("valid", valid), ("test", test))
        }
        paper = paper_perplexity(config, size) if alike else (None, None)
        return {
            "members": size,
            "subsets": len(measured["test"]),
            **{f"{name}_perplexity": float(p.mean()) for name, p in measured.items()},
            **{f"{name}_spread": deviation(p) for name, p in measured.items()},
            "paper_valid_perplexity": paper[0],
            "paper_test_perplexity": paper[1],
        }

    return {
        "name": config.name,
        "corpus": corpus.name,
        "config": to_dict(config),
        "mixtures": [mixture(size) for size in sizes],
        "unigram_perplexity": unigram_perplexity(corpus),
        "floor_perplexity": corpus.floor_perplexity,
        **environment(),
    }


def summarize_members(
    run: EnsembleRun, valid: MemberNLL, test: MemberNLL, asked: list[int] | None = None
) -> dict[str, Any]:
    """The record of a trained ensemble, whose mixtures leave out the members that diverged.

    Args:
      run: the ensemble.
      valid: nats of every token of the validation text, from `EnsembleRun.nll`.
      test: the same for the test text.
      asked: numbers of members to average, as for `sizes_for`.
    """
    live = run.live
    sizes = sizes_for(asked, len(live))
    summary = summarize_mixtures(run.config, run.corpus, valid[live], test[live], sizes)
    return summary | {
        "kernel": run.kernel,
        "members": member_records(run, valid, test),
        "seconds": run.journal.seconds,
    }


def member_records(run: EnsembleRun, valid: MemberNLL, test: MemberNLL) -> list[dict[str, Any]]:
    """The seed of every member with its perplexities, or with the reason for its exclusion."""
    return [
        {"seed": run.seed(member), "excluded": run.journal.excluded.get(str(member))}
        | (member_record(valid[member], test[member]) if member in run.live else {})
        for member in range(run.members)
    ]


def member_record(valid: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The final perplexities of one member."""
    return {"valid_perplexity": perplexity(valid), "test_perplexity": perplexity(test)}


def format_mixture(mixture: dict[str, Any], split: str, digits: int) -> str:
    """A perplexity, with the standard deviation over subsets if there are several."""
    spread = mixture[f"{split}_spread"] if mixture["subsets"] > 1 else None
    return format_spread(mixture[f"{split}_perplexity"], spread, digits)


def print_mixtures(console: Console, summary: dict[str, Any]) -> None:
    """Prints one row per mixture, with the standard deviation over subsets, beside the paper's."""
    table = Table(title=f"Perplexity: {summary['corpus']}, {summary['name']}")
    table.add_column("models averaged")
    for column in ("validation", "test"):
        table.add_column(column, justify="right")
    mixtures = summary["mixtures"]
    paper = any(mixture["paper_test_perplexity"] is not None for mixture in mixtures)
    if paper:
        table.add_column("paper", justify="right")
    for mixture in mixtures:
        cells = [format_mixture(mixture, name, digits=2) for name in ("valid", "test")]
        if paper and mixture["paper_test_perplexity"] is not None:
            figures = (mixture["paper_valid_perplexity"], mixture["paper_test_perplexity"])
            cells.append(" / ".join(f"{figure:.1f}" for figure in figures))
        table.add_row(str(mixture["members"]), *cells)
    for label, name in (
        ("floor of the source", "floor_perplexity"),
        ("unigram", "unigram_perplexity"),
    ):
        if summary[name] is not None:
            table.add_row(label, "", f"{summary[name]:.2f}")
    console.print(table)
