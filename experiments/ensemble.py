"""Trains many models and averages them: `python -m experiments.ensemble --config=small`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from absl.flags import FLAGS
from rich.console import Console

from experiments.cli import ensemble_flags, program, training_flags
from experiments.cli.ensemble_flags import sizes_from_flags
from experiments.cli.flag_kinds import define_paths
from experiments.cli.help import flags_of
from experiments.cli.host_flags import join_hosts
from experiments.cli.opened_runs import open_curves, prepare, train_by_flags
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.text_flags import FRACTIONS, TEXT_FILES, load_corpus, with_text_settings
from experiments.cli.training_flags import configure, default_workdir, open_console
from experiments.reports.figures import is_picture, write_picture
from experiments.reports.run_figures import mixtures_figure
from experiments.reports.summary import (
    member_record,
    print_mixtures,
    sizes_for,
    summarize_members,
    summarize_mixtures,
)
from experiments.training.ensemble_run import with_seeds
from experiments.training.finished_runs import load_finished_run, read_run_config
from experiments.training.provenance import peak_memory, provenance
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.json_text import read_json_object

DEFAULT_MEMBERS = 10
REFUSED = ("patience",)
# With --from, all others say how to train.
_AVERAGING_FLAGS = ("from", "sizes", "workdir", "data_dir", "cache_dir", *TEXT_FILES, *FRACTIONS)

flags.adopt_module_key_flags(training_flags)
flags.adopt_module_key_flags(ensemble_flags)
define_paths("from", None, "folders of finished runs of experiments.ptb to average instead")


def main() -> None:
    """Trains an ensemble, or takes finished runs, and reports the perplexities of averages."""
    if FLAGS["from"].value is not None:
        return write_averages(*average_runs(FLAGS["from"].value))
    members = FLAGS.members or DEFAULT_MEMBERS
    sizes = sizes_from_flags(members)
    config, workdir = configure(members=members)
    console = open_console()
    run = prepare(config, with_seeds(config, members), workdir, console, members=members)
    with open_curves(run, workdir, console) as curves:
        train_by_flags(run, workdir, console, curves)
        run.write_models(workdir)
        with console.status("evaluating"):
            valid, test = run.nll(run.corpus.valid), run.nll(run.corpus.test)
            summary = summarize_members(run, valid, test, sizes)
        curves.results(run.step, summary["mixtures"][-1])
    workdir.require_held()
    write_averages(summary, workdir, console)


def average_runs(paths: list[str]) -> tuple[dict[str, Any], Workdir, Console]:
    """Evaluates the mixtures of finished runs, one model in memory at a time.

    Raises:
      InputError: the flags do not go together, or a run is missing, unfinished, or was
        trained on another text.
    """
    _refuse_training_flags()
    folders = _named_runs(paths)
    asked = sizes_from_flags(len(folders))
    configs = [read_run_config(folder) for folder in folders]
    workdir = default_workdir("mixture", *(folder.path.name for folder in folders))
    if workdir.config.exists() or _averaged(workdir) not in (None, _resolved(folders)):
        raise InputError(
            f"--workdir={workdir.path}: holds a run or an average of other models, whose summary"
            " would be lost; name another"
        )
    refuse_to_replace("workdir", workdir.summary, "of an average", lambda _: True)  # as found above
    refuse_to_replace("workdir", workdir.mixtures, "of this program", is_picture)
    read = with_text_settings(configs[0], {"corpus": configs[0].corpus})
    console, given = join_hosts(), configs[0].vocabulary or configs[0].init_from
    corpus = load_corpus(read, load_model(folders[0].model) if given else None)
    with console.status("reading the runs"):
        for folder, config in zip(folders, configs, strict=True):  # before any is evaluated
            load_finished_run(folder, config, corpus)
    valid, test, members = [], [], []
    for folder, config in zip(folders, configs, strict=True):
        with console.status(f"evaluating {folder.path}"):
            run = load_finished_run(folder, config, corpus)
            valid.append(run.nll(corpus.valid))
            test.append(run.nll(corpus.test))
        # Independent of the current directory.
        path = os.path.relpath(*map(os.path.realpath, (folder.path, workdir.path)))
        members.append({"run": path, **member_record(valid[-1], test[-1])})
    sizes = sizes_for(asked, len(folders))
    summary = summarize_mixtures(configs, corpus, np.stack(valid), np.stack(test), sizes)
    workdir.path.mkdir(parents=True, exist_ok=True)
    return summary | {"members": members} | provenance() | peak_memory(), workdir, console


def _refuse_training_flags() -> None:
    """Refuses flags without a meaning where nothing is trained."""
    if FLAGS.coordinator_address:
        raise InputError("--from: one process averages; leave --coordinator_address out")
    names = [name for name in (*flags_of(main), *REFUSED) if name not in _AVERAGING_FLAGS]
    if refused := [name for name in names if FLAGS[name].present]:
        raise InputError(
            "--from: the runs are trained, with settings of their own; leave out"
            f" --{', --'.join(refused)}"
        )


def _named_runs(paths: list[str]) -> list[Workdir]:
    """The folders named by `--from`, each once."""
    if not paths:
        raise InputError("--from: names no run; give folders, separated by commas")
    resolved = [os.path.realpath(path) for path in paths]
    if len(set(resolved)) < len(resolved):
        raise InputError(f"--from={','.join(paths)}: a run is named twice; name each once")
    return [Workdir(path) for path in paths]


def _averaged(workdir: Workdir) -> set[Path] | None:
    """The runs averaged in the record that a folder holds; None if it holds none."""
    if not workdir.summary.exists():
        return None
    try:
        members = read_json_object(workdir.summary)["members"]
        return _resolved([Workdir(workdir.path / member["run"]) for member in members])
    except (ValueError, KeyError, TypeError):
        return set()  # a record of something else


def _resolved(folders: list[Workdir]) -> set[Path]:
    return {folder.path.resolve() for folder in folders}


def write_averages(summary: dict[str, Any], workdir: Workdir, console: Console) -> None:
    """Writes the summary and the picture, and prints the table."""
    write_json(workdir.summary, summary)
    print_mixtures(console, summary)
    for member in summary["members"]:
        if member.get("excluded"):
            console.print(f"without seed {member['seed']}: {member['excluded']}", soft_wrap=True)
    write_picture(console, workdir.mixtures, mixtures_figure, summary)
    console.print(f"all results are in {workdir.path}", soft_wrap=True)


if __name__ == "__main__":
    program.run(main)
