"""What runs and ensembles report at the end: perplexities, in a record and in a table."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.reports.records import model_name, title_of
from experiments.reports.statistics import deviation, format_spread
from experiments.training.ensemble_run import EnsembleRun
from experiments.training.environment import environment
from experiments.training.epoch_display import format_figure
from experiments.training.identity import is_of_the_paper, same_model
from experiments.training.run import Run, chosen_epochs
from experiments.training.single_run import SingleRun
from zaremba_jax.config import Config, to_dict
from zaremba_jax.data.corpus import Corpus, unigram_perplexity
from zaremba_jax.data.units import UNITS
from zaremba_jax.ensemble import MemberNLL, mixture_perplexities
from zaremba_jax.evaluate import monte_carlo_nll, perplexity
from zaremba_jax.model import count_params, param_shapes
from zaremba_jax.presets import PAPER_PERPLEXITIES

DEFAULT_SIZES = (1, 2, 5, 10, 38)  # the paper's
MONTE_CARLO_FIGURES = ("mc_samples", "mc_valid_perplexity", "mc_test_perplexity")


def summarize(
    run: SingleRun, valid: np.ndarray, test: np.ndarray, mc_samples: int = 0
) -> dict[str, Any]:
    """The record of a trained run, with `mc_samples` of Monte Carlo dropout unless that is 0.

    `valid` and `test` are the nats of every token but the first, by `SingleRun.nll`: one stream,
    state carried from the first token to the last.
    """
    config, corpus = run.config, run.corpus
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
        "epochs": len(run.journal.history),
        "parameters": count_params(run.state.params),
        **chosen_epochs(run, 0),
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
        **training_record(run),
    }


def training_record(run: Run) -> dict[str, Any]:
    """How models were trained: speed and time, when and from which source, and on what."""
    speeds = [metrics["words_per_second"] for metrics in run.journal.history]
    return {
        "words_per_second": float(np.median(speeds)),
        "seconds": run.journal.seconds,
        # Of the process that trained last, which earlier versions did not tell.
        **environment(run.devices),
        **run.journal.provenance,
    }


def paper_perplexity(config: Config, members: int = 1) -> tuple[float | None, float | None]:
    """The paper's validation and test figures for this model, whatever its seed, if any."""
    if not is_of_the_paper(config):
        return None, None
    return PAPER_PERPLEXITIES.get(config.name, {}).get(members, (None, None))


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Prints the final perplexities, and the figures to compare them with."""
    table = Table(title=f"Perplexity: {title_of(summary)}")
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
            table.add_row(label, *("" if f is None else format_figure(f) for f in figures))
    unit = UNITS[summary["unit"]]
    if unit.reported_in_bits:
        bits = (f"{summary[name]:.3f}" for name in ("valid_bits", "test_bits"))
        table.add_row(f"bits per {unit.noun}", *bits)
    console.print(table)


def sizes_for(asked: list[int] | None, members: int) -> list[int]:
    """The numbers of members to average, none above `members`, which is always included."""
    return sorted({min(size, members) for size in (*(asked or DEFAULT_SIZES), members)})


def summarize_mixtures(
    configs: Sequence[Config], corpus: Corpus, valid: MemberNLL, test: MemberNLL, sizes: list[int]
) -> dict[str, Any]:
    """The record of all mixtures of members, whose nats of every token are `valid` and `test`.

    `configs` are the members', or one for all. The paper's figures stand beside those of members
    that are one model, whatever their seeds.
    """
    config, *others = configs
    are_alike = all(same_model(config, other) for other in others)
    names = [config.name] if are_alike else dict.fromkeys(map(model_name, configs))

    def mixture(size: int) -> dict[str, Any]:
        measured = {
            name: mixture_perplexities(nll, size)
            for name, nll in (("valid", valid), ("test", test))
        }
        paper = paper_perplexity(config, size) if are_alike else (None, None)
        return {
            "members": size,
            "subsets": len(measured["test"]),
            **{f"{name}_perplexity": float(p.mean()) for name, p in measured.items()},
            **{f"{name}_bits": math.log2(p.mean()) for name, p in measured.items()},
            **{f"{name}_spread": deviation(p) for name, p in measured.items()},
            "paper_valid_perplexity": paper[0],
            "paper_test_perplexity": paper[1],
        }

    return {
        "name": " and ".join(names),
        "corpus": corpus.name,
        "unit": corpus.vocabulary.unit,
        "config": to_dict(config) if are_alike else None,
        "mixtures": [mixture(size) for size in sizes],
        "unigram_perplexity": unigram_perplexity(corpus),
        "floor_perplexity": corpus.floor_perplexity,
        **environment(),
    }


def summarize_members(
    run: EnsembleRun, valid: MemberNLL, test: MemberNLL, asked: list[int] | None = None
) -> dict[str, Any]:
    """The record of a trained ensemble, whose mixtures leave out the members that diverged.

    `valid` and `test` are from `EnsembleRun.nll`; `asked` is as for `sizes_for`.
    """
    live = run.live
    sizes = sizes_for(asked, len(live))
    summary = summarize_mixtures([run.config], run.corpus, valid[live], test[live], sizes)
    return summary | {
        "kernel": run.kernel,
        "epochs": len(run.journal.history),
        "parameters": count_params(param_shapes(run.config.model, len(run.corpus.vocabulary))),
        "members": member_records(run, valid, test),
        **training_record(run),
    }


def member_records(run: EnsembleRun, valid: MemberNLL, test: MemberNLL) -> list[dict[str, Any]]:
    """The seed of every member with its perplexities, or with the reason for its exclusion."""
    return [
        {"seed": run.seed(member), "excluded": run.journal.excluded.get(member)}
        | (
            member_record(valid[member], test[member]) | chosen_epochs(run, member)
            if member in run.live
            else {}
        )
        for member in range(run.members)
    ]


def member_record(valid: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """The final perplexities of one member."""
    return {"valid_perplexity": perplexity(valid), "test_perplexity": perplexity(test)}


def setting_perplexities(setting: dict[str, Any], split: str) -> list[float]:
    """Those of the models of a sweep's combination; empty if one of them diverged."""
    if any(member["excluded"] for member in setting["members"]):
        return []
    return [member[f"{split}_perplexity"] for member in setting["members"]]


def format_mixture(mixture: dict[str, Any], split: str, digits: int) -> str:
    """A perplexity, with the standard deviation over subsets if there are several."""
    spread = mixture[f"{split}_spread"] if mixture["subsets"] > 1 else None
    return format_spread(mixture[f"{split}_perplexity"], spread, digits)


def print_mixtures(console: Console, summary: dict[str, Any]) -> None:
    """Prints one row per mixture, with the standard deviation over subsets, beside the paper's."""
    table = Table(title=f"Perplexity: {title_of(summary)}")
    table.add_column("models averaged")
    for column in ("validation", "test"):
        table.add_column(column, justify="right")
    mixtures, unit = summary["mixtures"], UNITS[summary["unit"]]
    if unit.reported_in_bits:
        table.add_column(f"bits per {unit.noun}", justify="right")
    paper = any(mixture["paper_test_perplexity"] is not None for mixture in mixtures)
    if paper:
        table.add_column("paper", justify="right")
    for mixture in mixtures:
        cells = [format_mixture(mixture, name, digits=2) for name in ("valid", "test")]
        if unit.reported_in_bits:
            cells.append(f"{mixture['valid_bits']:.3f} / {mixture['test_bits']:.3f}")
        if paper and mixture["paper_test_perplexity"] is not None:
            figures = (mixture["paper_valid_perplexity"], mixture["paper_test_perplexity"])
            cells.append(" / ".join(f"{figure:.1f}" for figure in figures))
        table.add_row(str(mixture["members"]), *cells)
    for label, name in (
        ("floor of the source", "floor_perplexity"),
        ("unigram", "unigram_perplexity"),
    ):
        if summary[name] is not None:
            table.add_row(label, "", format_figure(summary[name]))
    console.print(table)
