"""Reproduces the paper's Penn Treebank table: `python -m experiments.reproduce --rows=small`."""

import functools
from pathlib import Path

import jax
from absl import flags
from absl.flags import FLAGS
from jax.sharding import Mesh
from rich.console import Console

from experiments.cli import ensemble_flags, program, training_flags
from experiments.cli.config_flags import changes_from_flags
from experiments.cli.ensemble_flags import sizes_from_flags
from experiments.cli.flag_kinds import define_path
from experiments.cli.opened_runs import (
    at_once_on,
    open_curves,
    open_ensemble,
    open_run,
    train_by_flags,
)
from experiments.cli.text_flags import FRACTIONS, TEXT_FILES, load_corpus, with_text_settings
from experiments.cli.training_flags import default_workdir, open_console
from experiments.reports.records import model_name, read_records
from experiments.reports.summary import summarize, summarize_members
from experiments.table1 import jobs
from experiments.table1.averages import mix, read_mixtures, seeds_without_nll, write_mixtures
from experiments.table1.page import refuse_other_results, write_table
from experiments.training.divergence import NonFiniteLossError
from experiments.training.ensemble_run import with_seeds
from experiments.training.run import Run
from experiments.training.run_folder import Workdir
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.parallel.mesh import MEMBER, make_mesh
from zaremba_jax.presets import PAPER_PERPLEXITIES, PRESETS

REFUSED = (
    *("config", "corpus", *TEXT_FILES, *FRACTIONS),
    *("vocab_size", "min_count", "vocabulary", "init_from"),
)

flags.adopt_module_key_flags(training_flags)
flags.adopt_module_key_flags(ensemble_flags)
flags.DEFINE_list(
    "rows",
    list(PAPER_PERPLEXITIES),
    "models to train, comma-separated; empty: only write the table",
)
define_path(
    "results", None, "folder of the records and the table (default: results in the --workdir)"
)


def main() -> None:
    """Trains what the records lack, averages the models there are, and updates the table."""
    rows = rows_from_flags()
    folder = default_workdir("reproduce").path
    results = Path(FLAGS.results or folder / "results")
    refuse_other_results(results)
    sizes = [mixture_sizes(config, results) for config in rows]
    console = open_console()
    refuse_patience_of_hosts(rows)
    mesh = make_mesh(jax.devices(), FLAGS.data_parallel)
    results.mkdir(parents=True, exist_ok=True)
    for config, averaged in zip(rows, sizes, strict=True):
        corpus = load_corpus(config)
        left = jobs_left(config, corpus, mesh, folder, results, console)
        kept = update_table(config, corpus, averaged, folder, results)
        for job in left:
            train_job(job, corpus, mesh, folder, results, console)
            kept = update_table(config, corpus, averaged, folder, results)
        if kept:
            console.print(
                f"{model_name(config)}: {results} keeps its average of seeds"
                f" {', '.join(map(str, kept))}, some of which are not in {folder}; to average"
                " the models there, name another folder with --results",
                soft_wrap=True,
            )
    write_table(results, console)
    console.print(f"all results are in {results}", soft_wrap=True)


def jobs_left(
    config: Config, corpus: Corpus, mesh: Mesh, folder: Path, results: Path, console: Console
) -> list[jobs.Job]:
    """What to train of a configuration; says what no average will include, or that all is done."""
    seeds, records = num_models_from_flags(config), read_records(results)
    together = at_once_on(mesh, config, corpus, seeds) * mesh.shape[MEMBER]
    at_most = 1 if config.train.patience else together  # each ends by its own estimates
    left = jobs.remaining_jobs(config, seeds, records, folder, at_most)
    if left and (unmixed := seeds_without_nll(config, seeds, records, folder)):
        console.print(
            f"{model_name(config)}: no average will include seed {', '.join(map(str, unmixed))}:"
            f" recorded, but no nats per token of that model are in {folder}; remove that record"
            " to train it here",
            soft_wrap=True,
        )
    if not left:
        console.print(
            f"{model_name(config)}: nothing to train, since {results} has the records; to start"
            " afresh, name another folder with --results",
            soft_wrap=True,
        )
    return left


def update_table(
    config: Config, corpus: Corpus, sizes: list[int], folder: Path, results: Path
) -> list[int]:
    """Averages the models of a configuration that there are, and writes the table.

    Returns:
      What `write_mixtures` does.
    """
    mixtures = mix(config, corpus, folder, sizes, read_records(results))
    kept = write_mixtures(results, config, mixtures)
    write_table(results, Console(quiet=True))  # printed once, at the end
    return kept


def train_job(
    job: jobs.Job, corpus: Corpus, mesh: Mesh, folder: Path, results: Path, console: Console
) -> None:
    """Trains the models of a job, and records them."""
    console.print(f"{job.name}:", soft_wrap=True)
    workdir = Workdir(folder / job.name)
    run, summary_of = open_job(job, corpus, mesh, workdir, console)
    try:
        with open_curves(run, workdir, console) as curves:
            train_by_flags(run, workdir, console, curves)
            with console.status("evaluating"):
                summary = jobs.record_job(run, summary_of, workdir, results)
            curves.results(run.step, summary.get("mixtures", [summary])[-1])
    except NonFiniteLossError as error:  # of one model, or of an ensemble's last
        console.print(f"left out: {error}", soft_wrap=True)
        jobs.record_diverged(run, error.reasons, workdir, results)


def open_job(
    job: jobs.Job, corpus: Corpus, mesh: Mesh, workdir: Workdir, console: Console
) -> tuple[Run, jobs.SummaryOf]:
    """The run of a job, resumed if its folder holds it, and what makes its summary."""
    # A run of one model uses one process's devices; an ensemble of one uses those of all. What was
    # begun as one of them goes on as that.
    began_together = "members" in workdir.other_settings()
    if job.count == 1 and jax.process_count() == 1 and not began_together:
        workdir.refuse_another_run(job.config)
        run = open_run(job.config, corpus, workdir, console)
        return run, functools.partial(summarize, run)
    workdir.refuse_another_run(job.config, members=job.count)
    configs = with_seeds(job.config, job.count)
    run = open_ensemble(job.config, configs, corpus, mesh, workdir, console, members=job.count)
    return run, functools.partial(summarize_members, run)


def rows_from_flags() -> list[Config]:
    """The configurations named by `--rows`, with the changes of the other flags."""
    if FLAGS["config"].present:
        raise InputError(f"--config={FLAGS.config}: name models of the table with --rows")
    changes = changes_from_flags()
    own_text = any(FLAGS[name].value is not None for name in (*TEXT_FILES, *FRACTIONS))
    if changes.get("corpus", "ptb") != "ptb" or own_text:
        raise InputError("--corpus, --train_file: the table is the Penn Treebank's; leave them out")
    if {"vocab_size", "min_count"} & changes.keys() or FLAGS.vocabulary:
        raise InputError(
            "--vocab_size, --min_count, --vocabulary: perplexities over other vocabularies cannot"
            " be compared with the table's; leave them out"
        )
    if FLAGS.init_from:
        raise InputError("--init_from: the table's models begin anew; leave it out")
    names = [name for name in dict.fromkeys(FLAGS.rows) if name]
    for name in names:
        if name not in PAPER_PERPLEXITIES:
            raise InputError(f"--rows={name}: give some of {','.join(PAPER_PERPLEXITIES)}")
    return [with_text_settings(override(PRESETS[name], **changes), changes) for name in names]


def refuse_patience_of_hosts(configs: list[Config]) -> None:
    """Refuses `--patience` on several hosts, where `open_job` makes an ensemble even of one."""
    for config in configs:
        if config.train.patience and jax.process_count() > 1:
            raise InputError(
                f"--patience={config.train.patience}: models that several hosts train end together;"
                " leave it out, or train on one host"
            )


def num_models_from_flags(config: Config) -> int:
    """How many models of a configuration to train; by default, as many as the paper averages."""
    return FLAGS.members or max(PAPER_PERPLEXITIES[config.name])


def mixture_sizes(config: Config, results: Path) -> list[int]:
    """How many models to average: as many as the paper, as asked, and as in earlier results."""
    asked = sizes_from_flags(num_models_from_flags(config)) or []
    record = read_mixtures(results, config) or {"mixtures": []}
    recorded = [mixture["members"] for mixture in record["mixtures"]]
    return sorted({*PAPER_PERPLEXITIES[config.name], *asked, *recorded})


if __name__ == "__main__":
    program.run(main)
