"""Reproduces the paper's Penn Treebank table: `python -m experiments.reproduce --rows=small`."""

from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from experiments import command_line, member_flags, run_flags
from experiments.command_line import FLAGS, changes_from_flags, fail
from experiments.member_flags import asked_sizes
from experiments.members import default_at_once
from experiments.records import model_name, read_records
from experiments.reproduction import (
    jobs_left,
    mix,
    open_job,
    read_mixtures,
    record_job,
    write_mixtures,
)
from experiments.run_flags import default_workdir, join_hosts, load_corpus, train_to_the_end
from experiments.table1 import Line, page, print_lines, table1
from experiments.workdir import write_text
from zaremba_jax.config import PAPER_PERPLEXITIES, PRESETS, Config, override
from zaremba_jax.corpus import Corpus
from zaremba_jax.ensemble import MEMBER, make_mesh

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(member_flags)
flags.DEFINE_list(
    "rows", list(PAPER_PERPLEXITIES), "models to train, with commas; none: write the table alone"
)
flags.DEFINE_integer(
    "seeds",
    None,
    "models for the mean of single ones (default: as many as --members)",
    lower_bound=1,
)
flags.DEFINE_string(
    "results", str(Path(__file__).parent / "results"), "folder of the records and of the table"
)


def main() -> None:
    """Trains what the records lack, averages what there is, and keeps the table up to date."""
    try:
        rows = asked_rows()
        sizes = [sizes_of(config) for config in rows]
        results, folder = Path(FLAGS.results), default_workdir("reproduce").path
        console = join_hosts()
        mesh = make_mesh(jax.devices(), FLAGS.data_parallel)
        results.mkdir(parents=True, exist_ok=True)
        for config, averaged in zip(rows, sizes, strict=True):
            corpus = load_corpus(config)
            for _ in train_row(config, max(averaged), corpus, mesh, folder, results, console):
                write_mixtures(results, config, mix(config, corpus, folder, averaged))
                report(results)
        lines = report(results)
    except (ValueError, OSError) as error:
        fail(error)
    print_lines(console, lines)
    console.print(f"all of it is in {results}", soft_wrap=True)


def train_row(
    config: Config,
    members: int,
    corpus: Corpus,
    mesh: Mesh,
    folder: Path,
    results: Path,
    console: Console,
) -> Iterator[None]:
    """Trains and records the models of a configuration that there is no record of.

    Stops before the first, and after each.
    """
    members = FLAGS.members or members
    seeds = max(members, FLAGS.seeds or 1)
    at_once = FLAGS.members_at_once or default_at_once(config, len(corpus.vocabulary), seeds, mesh)
    jobs = jobs_left(config, seeds, read_records(results), at_once * mesh.shape[MEMBER])
    yield
    for job in jobs:
        console.print(f"{job.name}:", soft_wrap=True)
        run, workdir = open_job(job, corpus, folder, at_once, mesh, console)
        train_to_the_end(run, workdir, console)
        with console.status("evaluating"):
            record_job(run, workdir, results)
        yield


def asked_rows() -> list[Config]:
    """The configurations of `--rows`, with what other flags change in them.

    Raises:
      ValueError: the flags do not go together.
    """
    if FLAGS["config"].present:
        raise ValueError(f"--config={FLAGS.config}: name models of the table with --rows")
    changes = changes_from_flags()
    if changes.get("corpus", "ptb") != "ptb" or FLAGS.train_file:
        raise ValueError("--corpus, --train_file: the table is the Penn Treebank's; leave them out")
    names = [name for name in dict.fromkeys(FLAGS.rows) if name]
    for name in names:
        if name not in PAPER_PERPLEXITIES:
            raise ValueError(f"--rows={name}: give some of {','.join(PAPER_PERPLEXITIES)}")
    return [override(PRESETS[name], **changes) for name in names]


def sizes_of(config: Config) -> list[int]:
    """How many models of a configuration to average.

    Raises:
      ValueError: the flags do not go together.
    """
    paper = sorted(PAPER_PERPLEXITIES[config.name])
    return asked_sizes(FLAGS.members or paper[-1]) or paper


def report(results: Path) -> list[Line]:
    """Writes the table of all records, and its picture."""
    records = read_records(results)
    models = {model_name(r.model): r.model for r in records}
    found = {name: read_mixtures(results, model) for name, model in models.items()}
    mixtures = {name: mixture for name, mixture in found.items() if mixture}
    lines = table1(records, mixtures)
    picture = "![learning curves, and perplexity over the models averaged](table1.png)"
    write_text(results / "table1.md", f"{page(lines, records)}\n\n{picture}\n")
    try:
        from experiments.figures import draw_table1
    except ImportError:
        return lines  # matplotlib is an extra
    if jax.process_index() == 0:
        draw_table1(results / "table1.png", records, mixtures)
    return lines


if __name__ == "__main__":
    command_line.run(main)
