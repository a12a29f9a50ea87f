"""Compares runs on one page: `python -m experiments.report runs/small runs/medium`."""

from collections.abc import Sequence
from pathlib import Path

from experiments.cli import program
from experiments.cli.flag_kinds import define_path
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.program import FLAGS
from experiments.cli.terminal import Terminal
from experiments.reports.comparison import TITLE, compare, html_page, print_comparison
from experiments.reports.records import read_record
from experiments.training.run_folder import Workdir, write_text

TAKES = "RUN..."

define_path("page", "report.html", "HTML file for the comparison, figures included")


def main(*runs: str) -> None:
    """Writes the page and prints its table."""
    refuse_to_replace("page", Path(FLAGS.page), "a page of this program", is_page)
    records = {name: read_record(Workdir(path)) for name, path in named(runs).items()}
    lines = compare(records)
    write_text(Path(FLAGS.page), html_page(records, lines))
    console = Terminal()
    print_comparison(console, lines)
    console.print(f"the page is {FLAGS.page}", soft_wrap=True)


def is_page(path: Path) -> bool:
    """Whether this program wrote a file."""
    return TITLE.encode() in path.read_bytes()


def named(runs: Sequence[str]) -> dict[str, str]:
    """The runs by the names of their folders, or by their paths if the names are not unique."""
    runs = list(dict.fromkeys(runs))
    short = [Path(path).resolve().name for path in runs]
    return dict(zip(short if len(set(short)) == len(short) else runs, runs, strict=True))


if __name__ == "__main__":
    program.run(main, TAKES)
