"""Trains a model for every combination of some rates: `python -m experiments.sweep --vary=…`."""

import itertools
import math
import statistics
from typing import Any

from absl import flags
from absl.flags import FLAGS
from rich.console import Console
from rich.table import Table

from experiments.cli import program, training_flags
from experiments.cli.config_flags import changes_from_flags
from experiments.cli.ensemble_flags import MOST_MEMBERS
from experiments.cli.opened_runs import open_curves, prepare, train_by_flags
from experiments.cli.training_flags import configure, open_console
from experiments.reports.figures import write_picture
from experiments.reports.records import title_of
from experiments.reports.run_figures import sweep_figure
from experiments.reports.statistics import format_mean
from experiments.reports.summary import member_records, setting_perplexities, training_record
from experiments.training.ensemble_run import EnsembleRun, with_seeds
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json, write_model
from zaremba_jax.config import Config, override, settings, to_dict
from zaremba_jax.ensemble import MemberNLL
from zaremba_jax.errors import InputError
from zaremba_jax.train import RATES

flags.adopt_module_key_flags(training_flags)
flags.declare_key_flag("members")
flags.declare_key_flag("members_at_once")
flags.DEFINE_multi_string(
    "vary", None, "NAME=VALUE,VALUE: a rate and the values to try; once for each rate"
)

REFUSED = ("patience",)
Grid = dict[str, list[float]]


def main() -> None:
    """Trains all models side by side, and reports which setting validates best."""
    if FLAGS.sizes:
        raise InputError("--sizes: a sweep averages no models; leave it out")
    grid, seeds = grid_from_flags(FLAGS.vary or []), FLAGS.members or 1
    vary = "+".join(f"{name}={'_'.join(map(str, grid[name]))}" for name in grid)
    if math.prod(map(len, grid.values())) * seeds > MOST_MEMBERS:
        raise InputError(
            f"--vary, --members: make more than {MOST_MEMBERS} models; give fewer values"
        )
    # No preset's own rate is one for Adam.
    base = {name: values[0] for name, values in grid.items()} if FLAGS.optimizer == "adam" else {}
    config, workdir = configure(base, vary=vary, members=seeds)
    configs, console = configs_of_grid(config, grid, seeds), open_console()
    run = prepare(config, configs, workdir, console, vary=vary, members=seeds)
    with open_curves(run, workdir, console) as curves:
        train_by_flags(run, workdir, console, curves)
        with console.status("evaluating"):
            valid, test = run.nll(run.corpus.valid), run.nll(run.corpus.test)
            summary = summarize_sweep(run, grid, seeds, valid, test)
        for line in summary["settings"]:
            if line["setting"] == summary["best"]:
                curves.results(run.step, mean_perplexities(line))
    workdir.require_held()
    workdir.members.mkdir(exist_ok=True)
    if not summary["best_members"]:
        for member in range(seeds):  # those of every combination
            workdir.member(run.seed(member)).unlink(missing_ok=True)  # of a run of fewer epochs
    for member in summary["best_members"]:
        write_model(workdir.member(run.seed(member)), run.model(member))
    write_comparison(summary, workdir, console)


def grid_from_flags(asked: list[str]) -> Grid:
    """The values given by `--vary`, by name of the setting.

    Raises:
      InputError: none are given, they are malformed, or a setting is given twice or is one in
        which members of one program cannot differ.
    """
    if not asked:
        raise InputError("--vary: nothing to try; give --vary=dropout=0.3,0.5 or the like")
    # Not zoneout, whose masks for evaluation are shared by all members.
    names = [
        name for name in RATES if settings()[name].kind is float and not name.startswith("zoneout")
    ]
    grid: Grid = {}
    for item in asked:
        name, _, values = item.partition("=")
        if name not in names:
            raise InputError(f"--vary={item}: give one of {', '.join(names)}, and its values")
        if name in grid or name in changes_from_flags():
            raise InputError(f"--vary={item}: {name} is given twice; give all its values at once")
        try:
            grid[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise InputError(f"--vary={item}: give numbers, separated by commas") from None
        if len(set(grid[name])) < len(grid[name]):
            raise InputError(f"--vary={item}: a value is given twice; give each once")
    return grid


def configs_of_grid(config: Config, grid: Grid, seeds: int) -> list[Config]:
    """One member per combination and seed; the seeds of a combination are consecutive."""
    return [
        member
        for values in itertools.product(*grid.values())
        for member in with_seeds(override(config, **dict(zip(grid, values, strict=True))), seeds)
    ]


def summarize_sweep(
    run: EnsembleRun, grid: Grid, seeds: int, valid: MemberNLL, test: MemberNLL
) -> dict[str, Any]:
    """The record of a sweep: one line per combination, and which of them validates best.

    `valid` and `test` are from `EnsembleRun.nll`.
    """
    members = member_records(run, valid, test)
    lines = [
        {
            "setting": dict(zip(grid, values, strict=True)),
            "members": members[index * seeds : (index + 1) * seeds],
        }
        for index, values in enumerate(itertools.product(*grid.values()))
    ]
    validated = {
        index: statistics.mean(figures)
        for index, line in enumerate(lines)
        if (figures := setting_perplexities(line, "valid"))
    }
    best = min(validated, key=validated.__getitem__, default=None)
    return {
        "name": run.config.name,
        "corpus": run.corpus.name,
        "config": to_dict(run.config),
        "kernel": run.kernel,
        "settings": lines,
        "best": None if best is None else lines[best]["setting"],
        "best_members": [] if best is None else [best * seeds + seed for seed in range(seeds)],
        **training_record(run),
    }


def mean_perplexities(line: dict[str, Any]) -> dict[str, float]:
    """Of a combination without a model that diverged, the means over its seeds."""
    return {
        f"{split}_perplexity": statistics.mean(setting_perplexities(line, split))
        for split in ("valid", "test")
    }


def write_comparison(summary: dict[str, Any], workdir: Workdir, console: Console) -> None:
    """Writes the summary and the picture, and prints the table and the best setting."""
    write_json(workdir.summary, summary)
    table = Table(title=f"Perplexity: {title_of(summary)}")
    for title in (*summary["settings"][0]["setting"], "validation", "test"):
        table.add_column(title, justify="right")
    for line in summary["settings"]:
        cells = [f"{value:g}" for value in line["setting"].values()]
        figures = (setting_perplexities(line, split) for split in ("valid", "test"))
        table.add_row(*cells, *map(_cell, figures))
    console.print(table)
    for line in summary["settings"]:
        for member in line["members"]:
            if member["excluded"]:
                setting = _as_flags(line["setting"])
                reason = f"{setting} --seed={member['seed']}: {member['excluded']}"
                console.print(reason, soft_wrap=True)
    if summary["best"] is None:
        console.print(
            "every setting had a model that diverged; try a lower learning rate or --clip_norm",
            soft_wrap=True,
        )
    else:
        console.print(f"best by validation: {_as_flags(summary['best'])}", soft_wrap=True)
    write_picture(console, workdir.sweep, sweep_figure, summary)
    console.print(f"all results are in {workdir.path}", soft_wrap=True)


def _cell(figures: list[float]) -> str:
    return format_mean(figures, digits=2) if figures else "diverged"


def _as_flags(setting: dict[str, float]) -> str:
    return " ".join(f"--{name}={value!r}" for name, value in setting.items())


if __name__ == "__main__":
    program.run(main)
