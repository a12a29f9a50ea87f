"""The paper's table 1 beside ours, as Markdown and as a picture, made from records only."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.cli.outputs import refuse_to_replace
from experiments.reports.figures import is_picture, write_picture
from experiments.reports.markdown import table
from experiments.reports.records import Record, by_seed, model_name, read_records, records_of
from experiments.reports.statistics import format_change, format_mean
from experiments.reports.summary import format_mixture
from experiments.table1.after_the_paper import LEGEND, TITLES, after_the_paper
from experiments.table1.averages import read_mixtures
from experiments.table1.figure import table1_figure
from experiments.training.written_files import write_text
from zaremba_jax.config import Config, override
from zaremba_jax.presets import PAPER_PERPLEXITIES, PRESETS

# Test perplexities of single models: from the docstring of ptb_word_lm.py in TensorFlow's
# tutorial; from pull request 2276 of tensorflow/models, which measured its block cell; and, by
# others, from issue 1057 there, the mean of ten runs (± 0.13), and issue 2505, an older and a
# newer version of the program.
TENSORFLOW = {
    "small": (115.91, 115.52),
    "medium": (82.07, 83.47, 83.81, 84.0, 85.7),
    "large": (78.29, 78.49),
}

_PAGE, _PICTURE = "table1.md", "table1.png"
_TITLE = "# Table 1: Penn Treebank"

Mixtures = dict[str, dict[str, Any]]

_LEGEND = """\
Perplexity. One model: mean ± standard deviation over seeds. Several: their probabilities are
averaged for each token (section 4.1); mean ± standard deviation over sets of that many models, all
sets or 100 drawn at random. The sets share models; sets that share none would vary more. Validation
and test are each read as one stream, with all N - 1 predictions counted. Training time is the sum
over all models of the line, with the evaluation after each epoch; a run counts as its number of
epochs times the median epoch, so that interruptions do not count. TensorFlow: from the docstring of
its tutorial's ptb_word_lm.py and pull request 2276 of tensorflow/models, and what others reached
with its program, from issues 1057 and 2505 there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """Single models, or averages of several: our figures, the paper's and TensorFlow's."""

    model: str
    averaged: int
    valid: str = "not run"
    paper_valid: str
    test: str = "not run"
    paper_test: str
    tensorflow: str
    models: str = ""
    time: str = ""

    @property
    def cells(self) -> list[str]:
        """The fields as text, in the order of `_TITLES`."""
        return [str(value) for value in dataclasses.astuple(self)]


_TITLES = ["model", "averaged", "validation", "paper", "test", "paper", "TensorFlow", "models"]
_TITLES += ["training time"]


_OTHERS_TITLES = ["setting", "validation", "change", "test", "change", "models", "all averaged"]
_OTHERS_LEGEND = """\
Models that differ from a preset. Change: the difference between their mean and the mean of all the
preset's seeds, ± its standard error, assuming that seeds vary as much as in the preset. They are
compared with the preset of the same precision, unless only the precision differs. All averaged: the
test perplexity of the average of all these models."""


def write_table(results: Path, console: Console) -> None:
    """Writes the table of all records and its picture; prints what was run."""
    records = read_records(results)
    models = {model_name(r.model): r.model for r in records if r.model.name in PAPER_PERPLEXITIES}
    mixtures = {name: read_mixtures(results, model) for name, model in models.items()}
    mixtures = {name: mixture for name, mixture in mixtures.items() if mixture}
    lines, others = table_lines(records, mixtures), other_choices(records, mixtures)
    page = markdown_page(lines, others, after_the_paper(records))
    picture = f"![learning curves, and perplexity over the models averaged]({_PICTURE})"
    write_text(results / _PAGE, f"{page}\n\n{picture}\n")
    print_page(console, lines, others)
    write_picture(console, results / _PICTURE, table1_figure, records, mixtures)


def refuse_other_results(results: Path) -> None:
    """Refuses a folder of `--results` in which the table would replace a file of something else."""
    refuse_to_replace("results", results / _PAGE, "a table of this program", _is_page)
    refuse_to_replace("results", results / _PICTURE, "of this program", is_picture)


def _is_page(path: Path) -> bool:
    return path.read_bytes().startswith(_TITLE.encode())


def table_lines(records: list[Record], mixtures: Mixtures) -> list[Line]:
    """The lines of the table: the paper's, and what else was averaged or run in bfloat16.

    `mixtures` are the records of `averages.mix`, by name of the model.
    """
    lines = []
    for name in PAPER_PERPLEXITIES:
        lines += _lines(PRESETS[name], records, mixtures)
        rounded = override(PRESETS[name], precision="bfloat16")
        if records_of(rounded, records):
            lines += _lines(rounded, records, mixtures)
    return lines


def markdown_page(
    lines: list[Line], others: list[list[str]], later: Sequence[list[str]] = ()
) -> str:
    """The table, then those by `other_choices` and by `after_the_paper`, as Markdown."""
    left = [_TITLES.index(title) for title in ("model", "models", "training time")]
    main_table = table(_TITLES, [line.cells for line in lines], left)
    paragraphs = [_TITLE, _LEGEND, main_table]
    if others:
        paragraphs += ["## Other choices", _OTHERS_LEGEND, table(_OTHERS_TITLES, others)]
    if later:
        left = [TITLES.index(title) for title in ("model", "source")]
        paragraphs += ["## After the paper", LEGEND, table(TITLES, later, left)]
    return "\n\n".join(paragraphs)


def print_page(console: Console, lines: list[Line], others: list[list[str]]) -> None:
    """Prints what was run, with the paper's figures; arguments as for `markdown_page`."""
    shown = _TITLES.index("TensorFlow")  # the columns before it
    run = [line.cells[:shown] for line in lines if line.models]
    for title, columns, rows in (
        ("Perplexity: Penn Treebank", _TITLES[:shown], run),
        ("Other choices", _OTHERS_TITLES, others),
    ):
        if rows:
            printed = Table(title=title, box=None, pad_edge=False, collapse_padding=True)
            printed.add_column(columns[0], no_wrap=True)
            for column in columns[1:]:
                printed.add_column(column, justify="right")
            for model, *figures in rows:
                narrow = [figure.replace(" ± ", "±") for figure in figures]  # for 80 columns
                printed.add_row(re.sub(r"-(?=\w+=)", "\n", model), *narrow)
            console.print(printed)


def _lines(model: Config, records: list[Record], mixtures: Mixtures) -> list[Line]:
    runs = [run for run in records_of(model, records) if run.perplexities]
    mixed = mixtures.get(model_name(model), {"mixtures": [], "seeds": []})
    measured = {mixture["members"]: mixture for mixture in mixed["mixtures"]}
    paper = PAPER_PERPLEXITIES[model.name]
    expected = paper if model == PRESETS[model.name] else ()
    others = TENSORFLOW[model.name]
    lines = []
    for size in sorted({1, *expected, *measured}):
        figures = [f"{figure:.1f}" for figure in paper.get(size, ())] or ["", ""]
        fields = _single(runs) if size == 1 else _mixture(measured.get(size), mixed["seeds"], runs)
        line = Line(
            model=model_name(model),
            averaged=size,
            paper_valid=figures[0],
            paper_test=figures[1],
            tensorflow=f"{min(others):.1f} to {max(others):.1f}" if size == 1 else "",
            **fields,
        )
        lines.append(line)
    return lines


def _single(records: list[Record]) -> dict[str, str]:
    figures = by_seed(records)
    if not figures:
        return {}
    valid, test = (format_mean(split) for split in zip(*figures.values(), strict=True))
    return {"valid": valid, "test": test, "models": str(len(figures)), "time": _time(records)}


def _mixture(record: dict[str, Any] | None, seeds: list[int], runs: list[Record]) -> dict[str, str]:
    if record is None:
        return {}
    valid, test = (format_mixture(record, split, digits=1) for split in ("valid", "test"))
    models = f"{len(seeds)}" + (f", {record['subsets']} sets" if record["subsets"] > 1 else "")
    pool = [run for run in runs if run.perplexities.keys() & set(seeds)]
    return {"valid": valid, "test": test, "models": models, "time": _time(pool)}


def _time(records: list[Record]) -> str:
    """Training time by device, in the order of the records."""
    seconds: dict[str, float] = {}
    for record in records:
        device = record.summary["device"]
        seconds[device] = seconds.get(device, 0.0) + _typical_seconds(record)
    return "; ".join(f"{_in_words(spent)}, {device}" for device, spent in seconds.items())


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.2g} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _typical_seconds(record: Record) -> float:
    """The time of a run if each of its epochs had taken their median."""
    ends = np.array([0.0, *(line["seconds"] for line in record.history)])
    return len(record.history) * float(np.median(np.diff(ends)))


def other_choices(records: list[Record], mixtures: Mixtures) -> list[list[str]]:
    """Table cells of the models that differ from a preset, compared with that preset.

    Arguments as for `table_lines`.
    """
    others = {
        model_name(r.model): r.model
        for r in records
        if r.model.name in PAPER_PERPLEXITIES
        and r.model != PRESETS[r.model.name]
        and r.perplexities
    }
    lines = []
    for name, model in sorted(others.items()):
        preset = override(PRESETS[model.name], precision=model.compute.precision)
        preset = PRESETS[model.name] if model == preset else preset
        own, base = (by_seed(records_of(config, records)) for config in (model, preset))
        cells = [name]
        for split in (0, 1):
            figures, of_base = ([pair[split] for pair in x.values()] for x in (own, base))
            cells += [format_mean(figures), format_change(figures, of_base)]
        mixed = mixtures.get(name, {"seeds": []})
        complete = set(mixed["seeds"]) == own.keys()
        averaged = f"{mixed['mixtures'][-1]['test_perplexity']:.1f}" if complete else ""
        lines.append([*cells, str(len(own)), averaged])
    return lines
