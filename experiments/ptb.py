"""Trains the paper's language model: `python -m experiments.ptb --config=medium`."""

from typing import Any

from absl import flags
from absl.flags import FLAGS
from rich.console import Console

from experiments.cli import program, training_flags
from experiments.cli.initial_model import initial_model
from experiments.cli.opened_runs import open_curves, open_run, train_by_flags
from experiments.cli.text_flags import load_corpus
from experiments.cli.training_flags import configure, open_console
from experiments.reports.figures import write_picture
from experiments.reports.run_figures import curves_figure
from experiments.reports.summary import MONTE_CARLO_FIGURES, print_summary, summarize
from experiments.training.curves import Curves
from experiments.training.run_folder import Workdir
from experiments.training.single_run import SingleRun
from experiments.training.written_files import write_json
from zaremba_jax.json_text import read_json_object

flags.adopt_module_key_flags(training_flags)
flags.DEFINE_integer(
    "mc_samples",
    0,
    "evaluate by Monte Carlo dropout too, over this many samples",
    lower_bound=0,
    upper_bound=1_000_000,
)


def main() -> None:
    """Trains the model, or resumes a stopped run, and reports its perplexities."""
    config, workdir = configure()
    console = open_console(devices=FLAGS.data_parallel)
    with console.status("reading the text"):
        initial = initial_model(config)
        corpus = load_corpus(config, initial)
    run = open_run(config, corpus, workdir, console, initial)
    with open_curves(run, workdir, console) as curves:
        train_by_flags(run, workdir, console, curves)
        run.write_models(workdir)
        write_results(run, workdir, console, curves)


def write_results(run: SingleRun, workdir: Workdir, console: Console, curves: Curves) -> None:
    """Evaluates the trained model, writes its summary and curves, and prints its table."""
    with console.status("evaluating"):
        valid, test = run.nll(run.corpus.valid), run.nll(run.corpus.test)
        summary = summarize(run, valid, test, FLAGS.mc_samples)
    if not FLAGS.mc_samples:
        summary |= monte_carlo_figures(workdir)
    workdir.require_held()
    write_json(workdir.summary, summary)
    curves.results(run.step, summary)
    print_summary(console, summary)
    write_picture(console, workdir.curves, curves_figure, run.journal.history, summary)
    console.print(f"the whole run is in {workdir.path}", soft_wrap=True)


def monte_carlo_figures(workdir: Workdir) -> dict[str, Any]:
    """Those in the summary of an earlier call, if any; training on would have removed it."""
    if not workdir.summary.exists():
        return {}
    try:
        record = read_json_object(workdir.summary)
    except ValueError:  # it was damaged, and is written anew
        return {}
    figures = {name: record.get(name) for name in MONTE_CARLO_FIGURES}
    return figures if all(isinstance(x, int | float) for x in figures.values()) else {}


if __name__ == "__main__":
    program.run(main)
