"""Compares runs on one page: `python -m experiments.report runs/small runs/medium`."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl.flags import FLAGS

from experiments.cli import program
from experiments.cli.flag_kinds import define_path
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.terminal import Terminal
from experiments.comparisons.lines import (
    lines_of_mixtures,
    lines_of_runs,
    lines_of_settings,
    print_comparison,
)
from experiments.comparisons.page import TITLE, html_page
from experiments.comparisons.sources import read_source, with_runs_inside
from experiments.reports.figures import can_draw
from experiments.reports.records import Record
from experiments.training.written_files import write_text
from zaremba_jax.errors import InputError

TAKES = "RUN..."

define_path("page", "report.html", "HTML file for the comparison, figures included")


def main(*paths: str) -> None:
    """Writes the page and prints its table."""
    refuse_to_replace("page", Path(FLAGS.page), "a page of this program", is_page)
    console = Terminal()
    runs, others, notes = {}, [], []
    for name, path in with_runs_inside(named(paths)).items():
        try:
            source = read_source(Path(path), name)
        except InputError as error:
            notes.append(error)
            continue
        if not isinstance(source, Record):
            others += source
            continue
        runs[name] = source
        if "mixtures" in source.summary:
            others += lines_of_mixtures(name, source.summary)
    refused = None if runs or others else notes.pop(0)
    for note in notes:
        console.print(f"skipped {note}", soft_wrap=True)
    if refused is not None:
        raise refused
    settings = lines_of_settings(runs)
    lines = settings + others
    Path(FLAGS.page).parent.mkdir(parents=True, exist_ok=True)
    write_text(
        Path(FLAGS.page), html_page(lines, lines_of_runs(runs) if len(settings) < len(runs) else [])
    )
    print_comparison(console, lines)
    if not can_draw():
        console.print("no curves without matplotlib: pip install 'zaremba-jax[plots]'")
    console.print(f"the page is {FLAGS.page}", soft_wrap=True)


def is_page(path: Path) -> bool:
    """Whether this program wrote a file."""
    return TITLE.encode() in path.read_bytes()


def named(runs: Sequence[str]) -> dict[str, str]:
    """The runs by the names of their folders, or by their paths if the names are not unique."""
    runs = list(dict.fromkeys(runs))
    short = [Path(os.path.realpath(path)).name for path in runs]
    return dict(zip(short if len(set(short)) == len(short) else runs, runs, strict=True))


if __name__ == "__main__":
    program.run(main)
