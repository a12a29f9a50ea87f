"""Runs side by side: the lines of a table, with their curves and settings."""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.ablations.methods import METHODS
from experiments.reports.records import Record, model_name
from experiments.reports.summary import format_mixture, setting_perplexities
from experiments.training.epoch_display import format_figure
from zaremba_jax.config import completed, to_dict

TITLES = ("run", "model", "seed", "epochs", "training", "validation", "test")
TITLES += ("words/s", "hours", "device")
_PRINTED = ("epochs", "training", "validation", "test", "words/s")  # beside the name
_LEAST_USED = ("words/s", "training", "epochs", "validation")  # left out in this order
_NAME_WIDTH = 20  # letters of a name that the columns leave room for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Models that differ at most in their seed: a row of the table, and a line of the figure."""

    cells: dict[str, str]  # by title, those that there are
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Perplexities over epochs, of each model.
    validation: list[list[float]] = dataclasses.field(default_factory=list)
    training: list[list[float]] = dataclasses.field(default_factory=list)
    graded: bool = False  # one of a sweep's, which are in the order of their rates

    @property
    def name(self) -> str:
        """The name of the run, or of what several runs have in common."""
        return self.cells["run"]


def lines_of_runs(records: dict[str, Record]) -> list[Line]:
    """A line per run; `records` are by run name."""
    return [_line(name, [record]) for name, record in records.items()]


def lines_of_settings(records: dict[str, Record]) -> list[Line]:
    """A line per setting, for all runs of as many epochs that differ in nothing but their seed."""
    groups: dict[Any, dict[str, Record]] = {}
    for name, record in records.items():
        stage = len(record.history), bool(record.summary)
        groups.setdefault((record.model, str(record.more), *stage), {})[name] = record
    lines = []
    for group in groups.values():
        runs = list(group.values())
        seeds = [seed for run in runs for seed in run.seeds]
        if len(set(seeds)) < len(seeds):  # one model twice is not two seeds
            lines += lines_of_runs(group)
        else:
            several = f"{model_name(runs[0].model)}, {len(runs)} runs"
            if several in {line.name for line in lines}:  # at another stage, or of more models
                several += f": {', '.join(group)}"
            lines.append(_line(several if len(runs) > 1 else next(iter(group)), runs))
    return lines


def _line(name: str, runs: list[Record]) -> Line:
    model, last = runs[0].model, [run.history[-1] for run in runs if run.history]
    pairs = [pair for run in runs for pair in run.perplexities.values()]
    estimates = format_range([run.estimate for run in runs if run.history])
    seeds = [seed for run in runs for seed in run.seeds]
    valid, test = (format_range([pair[split] for pair in pairs]) for split in (0, 1))
    finished, unfinished = bool(runs[0].summary), f"({estimates})" if last else ""
    cells = {
        "run": name,
        "model": model_name(model),
        "seed": ", ".join(map(str, sorted(seeds))),
        "epochs": f"{len(runs[0].history)} of {model.train.epochs}",
        "training": format_range([line["train_perplexity"] for line in last]),
        "validation": valid or ("diverged" if finished else unfinished),
        "test": test or ("diverged" if finished else ""),
        "words/s": _mean("{:,.0f}", [line["words_per_second"] for line in last]),
        "hours": _mean("{:.2f}", [line["seconds"] / 3600 for line in last]),
        "device": ", ".join(dict.fromkeys(run.summary.get("device", "") for run in runs)),
    }
    return Line(
        cells=cells,
        settings=to_dict(runs[0].config) | {"seed": cells["seed"]},
        validation=[curve for run in runs for curve in run.curves if curve],
        training=[curve for run in runs for curve in run.training_curves if curve],
    )


def lines_of_mixtures(name: str, summary: dict[str, Any]) -> list[Line]:
    """A line per number of models averaged, mean and standard deviation over sets of models."""
    return [
        Line(
            cells={
                "run": f"{name}, {mixture['members']} averaged",
                "validation": format_mixture(mixture, "valid", digits=2),
                "test": format_mixture(mixture, "test", digits=2),
                "device": summary["device"],
            }
        )
        for mixture in summary["mixtures"]
    ]


def lines_of_sweep(name: str, summary: dict[str, Any], history: list[dict[str, Any]]) -> list[Line]:
    """A line per combination of a sweep's rates; without figures if a model of it diverged."""
    validation, training = (
        [list(curve) for curve in zip(*(epoch[key] for epoch in history), strict=True)]
        for key in ("valid_perplexity_estimates", "train_perplexities")
    )
    lines, start = [], 0
    for setting in summary["settings"]:
        members = setting["members"]
        own, start = slice(start, start + len(members)), start + len(members)
        rates = ", ".join(f"{rate} {value:g}" for rate, value in setting["setting"].items())
        valid, test = (setting_perplexities(setting, split) for split in ("valid", "test"))
        trained = training[own] if valid else []
        cells = {
            "run": f"{name}, {rates}",
            "seed": ", ".join(str(member["seed"]) for member in members),
            "epochs": f"{len(history)} of {summary['config']['epochs']}",
            "training": format_range([curve[-1] for curve in trained]),
            "validation": format_range(valid) or "diverged",
            "test": format_range(test) or "diverged",
            "device": summary["device"],
        }
        line = Line(
            cells=cells,
            settings=completed(summary["config"]) | setting["setting"] | {"seed": cells["seed"]},
            validation=validation[own] if valid else [],
            training=trained,
            graded=True,
        )
        lines.append(line)
    return lines


def lines_of_ablation(name: str, results: dict[str, Any]) -> list[Line]:
    """A line per cell and method of an ablation, at the chosen rate."""
    lines, first, epochs = [], results["config"]["seed"], results["config"]["epochs"]
    seeds = ", ".join(map(str, range(first, first + results["seeds"])))
    for cell, methods in results["language_modelling"].items():
        for method, record in methods.items():
            chosen = record["chosen"]
            rates = {} if chosen is None else record["candidates"][chosen]["rates"]
            validated = "" if chosen is None else record["candidates"][chosen]["validation"]
            cells = {
                "run": f"{name}, {cell}, {results['titles'][method]}",
                "seed": seeds,
                "epochs": f"{epochs} of {epochs}",
                "validation": f"{validated:.2f}" if validated else "diverged",
                "test": format_range(record["test"]),
                "device": results["device"],
            }
            trained = {
                "cell": cell,
                "learning_rate": results["learning_rates"][cell],
                "mask_each": METHODS[method].mask_each,
                "keep": "best",
                "seed": seeds,
            }
            settings = completed(results["config"]) | trained | rates
            lines.append(Line(cells=cells, settings=settings, validation=record["curves"]))
    return lines


def format_range(values: Sequence[float]) -> str:
    """The mean, and of several values the lowest and the highest; empty if there are none."""
    if not values:
        return ""
    mean, low, high = map(format_figure, (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low}-{high})"


def _mean(form: str, values: Sequence[float]) -> str:
    return form.format(statistics.mean(values)) if values else ""


def print_comparison(console: Console, lines: list[Line]) -> None:
    """Prints the columns of the table that fit on a terminal, every figure in one piece."""
    columns = _columns_within(console.width, lines)
    table = Table(title="Perplexity")
    table.add_column("run", overflow="fold")
    for title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for line, *cells in zip(lines, *columns.values(), strict=True):
        table.add_row(line.name, *cells)
    console.print(table)


def _columns_within(width: int, lines: list[Line]) -> dict[str, list[str]]:
    """The cells to print beside the names, by title: those that fit, ranges below their means."""
    names, columns = min(_NAME_WIDTH, max(len(line.name) for line in lines)), {}
    for left_out, before_range in itertools.product(range(len(_LEAST_USED) + 1), (" ", "\n")):
        columns = {
            title: [line.cells.get(title, "").replace(" (", f"{before_range}(") for line in lines]
            for title in _PRINTED
            if title not in _LEAST_USED[:left_out]
        }
        parts = [[title, *"\n".join(cells).split("\n")] for title, cells in columns.items()]
        if names + sum(max(map(len, column)) + 3 for column in parts) + 4 <= width:
            break
    return columns
