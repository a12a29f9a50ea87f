"""Runs side by side: a table, curves, and an HTML page that needs no other file."""

import statistics
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.reports.figures import (
    as_svg,
    can_draw,
    label_epochs,
    label_logarithmic,
    legend_outside,
    line_styles,
    panels,
    plain_text,
)
from experiments.reports.records import Record, model_name
from zaremba_jax.config import to_dict
from zaremba_jax.errors import InputError

_PRINTED = ("run", "epochs", "training", "validation", "test", "words/s")

TITLE = "<title>Comparison of runs</title>"
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{title}
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>Comparison of runs</h1>
<p>Perplexity. Training is that of the last epoch, regularizers on; validation and test are the
reported figures of a finished run (one stream, all N - 1 predictions); in brackets, the last
estimate of an unfinished one. For an ensemble, all are means over its members.</p>
<div class="wide">{table}</div>
{curves}
<h2>Settings that differ</h2>
<div class="wide">{settings}</div>
</body>
</html>
"""

Line = dict[str, str]


def compare(records: dict[str, Record]) -> list[Line]:
    """The table's cells by column title, one line per run; `records` are by run name."""
    return [{"run": name, **_figures(record)} for name, record in records.items()]


def _figures(record: Record) -> Line:
    summary, last = record.summary, record.history[-1] if record.history else {}
    valid, test = f"({last['valid_perplexity_estimate']:.2f})" if last else "", ""
    if pairs := record.perplexities.values():
        valid, test = (f"{statistics.mean(split):.2f}" for split in zip(*pairs, strict=True))
    return {
        "model": model_name(record.model),
        "seed": ", ".join(map(str, record.perplexities)),
        "epochs": f"{len(record.history)} of {record.model.train.epochs}",
        "training": f"{last['train_perplexity']:.2f}" if last else "",
        "validation": valid,
        "test": test,
        "words/s": f"{last['words_per_second']:,.0f}" if last else "",
        "hours": f"{last['seconds'] / 3600:.2f}" if last else "",
        "device": summary.get("device", ""),
    }


def print_comparison(console: Console, lines: list[Line]) -> None:
    """Prints the columns of the table that fit on a terminal."""
    table = Table(title="Perplexity")
    for title in _PRINTED:
        justify = "left" if title == "run" else "right"
        table.add_column(title, justify=justify, overflow="fold")
    for line in lines:
        table.add_row(*(line[title] for title in _PRINTED))
    console.print(table)


def html_page(records: dict[str, Record], lines: list[Line]) -> str:
    """The page: the table, the curves as an inline picture, and the settings that differ."""
    if not can_draw():
        raise InputError("the page's figures need matplotlib: pip install 'zaremba-jax[plots]'")
    histories = {name: record.history for name, record in records.items()}
    settings = {name: to_dict(record.config) for name, record in records.items()}
    return _PAGE.format(
        title=TITLE,
        table=_html_table([list(lines[0]), *(list(line.values()) for line in lines)]),
        curves=as_svg(comparison_figure(histories)),
        settings=_html_table(_differing(settings)),
    )


def _differing(settings: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row per setting that differs between the runs, one column per run."""
    names = dict.fromkeys(name for flat in settings.values() for name in flat)
    rows = [[name, *(str(flat[name]) for flat in settings.values())] for name in names]
    return [["setting", *settings], *(row for row in rows if len(set(row[1:])) > 1)]


def _html_table(rows: list[list[str]]) -> str:
    header, *body = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    lines = "\n".join(f"<tr>{row}</tr>" for row in body)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def comparison_figure(histories: dict[str, list[dict[str, Any]]]) -> Any:
    """Validation and training perplexity of runs over their epochs."""
    figure, sides = panels(12, max(4.6, 0.21 * len(histories)), columns=2, sharey=True)
    for axes, name, title in zip(
        sides,
        ("valid_perplexity_estimate", "train_perplexity"),
        ("validation (estimate)", "training, any regularizers on"),
        strict=True,
    ):
        styles = line_styles(len(histories))
        for (run, history), style in zip(histories.items(), styles, strict=True):
            epochs = [line["epoch"] for line in history]
            label = f" {plain_text(run)}"  # matplotlib leaves out a label that starts with _
            axes.plot(epochs, [line[name] for line in history], **style, label=label)
        axes.set_title(title)
        label_epochs(axes)
        label_logarithmic(axes)
    sides[0].set_ylabel("perplexity")
    legend_outside(figure)
    return figure
