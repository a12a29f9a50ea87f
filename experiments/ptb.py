"""Trains the paper's language model: `python -m experiments.ptb --config=medium`."""

import hashlib
import sys
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import command_line
from experiments.command_line import FLAGS, config_from_flags, fail
from experiments.summary import print_table, summarize
from experiments.training import (
    InterruptedRunError,
    NonFiniteLossError,
    Run,
    start_or_resume,
    train,
)
from experiments.workdir import Workdir, write_json
from zaremba_jax.config import Config, override
from zaremba_jax.corpus import Corpus, read_corpus
from zaremba_jax.ptb import load_ptb
from zaremba_jax.toy_corpus import toy_corpus

_LONGEST_NAME = 200  # of a workdir; file systems allow 255 bytes
TEXT_FILES = ("train_file", "valid_file", "test_file")

command_line.define_config_flags()
flags.DEFINE_string("data_dir", None, "folder with the three ptb.*.txt files (default: download)")
for split in TEXT_FILES:
    flags.DEFINE_string(split, None, "your own text, UTF-8, one sentence a line; give all three")
flags.DEFINE_string("workdir", None, "folder of the run (default: runs/, by the configuration)")
flags.DEFINE_integer("chunk", 20, "windows between two looks of the host", lower_bound=1)
flags.DEFINE_float("checkpoint_minutes", 10, "save this often within an epoch", lower_bound=0)
flags.DEFINE_integer(
    "mc_samples", 0, "evaluate by Monte Carlo dropout too, over so many samples", lower_bound=0
)


def configure() -> tuple[Config, Workdir]:
    """The configuration and the working directory that the flags ask for.

    Raises:
      ValueError: the flags do not go together.
    """
    config, changes = config_from_flags()
    own_text = [FLAGS[name].value for name in TEXT_FILES]
    if any(own_text):
        if not all(own_text):
            raise ValueError("--train_file, --valid_file and --test_file go together: give all")
        if changes.setdefault("corpus", "files") != "files":
            raise ValueError(f"--corpus={config.corpus}: leave it out when --train_file is given")
        config = override(config, corpus="files")
    elif config.corpus == "files":
        raise ValueError("--corpus=files: give --train_file, --valid_file and --test_file")
    if FLAGS.data_dir and config.corpus != "ptb":
        raise ValueError(
            f"--data_dir={FLAGS.data_dir}: holds the Penn Treebank, and this run reads"
            f" {config.corpus}; add --corpus=ptb or leave it out"
        )
    name = "-".join([config.name, *(f"{key}={value}" for key, value in changes.items())])
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: _LONGEST_NAME - 17]}-{digest}"
    return config, Workdir(FLAGS.workdir or Path("runs") / name)


def load_corpus(config: Config) -> Corpus:
    """Reads, downloads or makes the text."""
    if config.corpus == "toy":
        return toy_corpus()
    if config.corpus == "ptb":
        return load_ptb(FLAGS.data_dir)
    return read_corpus(
        Path(FLAGS.train_file).name, *(str(FLAGS[name].value) for name in TEXT_FILES)
    )


def main() -> None:
    """Trains, or goes on where an earlier start was stopped, and reports."""
    console = Console(highlight=False, markup=False)
    try:
        config, workdir = configure()
        workdir.check(config)
        run = start_or_resume(config, load_corpus(config), workdir, console)
        workdir.create(config)
    except (ValueError, OSError) as error:
        fail(error)
    try:
        train(
            run,
            workdir,
            console,
            chunk=FLAGS.chunk,
            checkpoint_minutes=FLAGS.checkpoint_minutes,
        )
    except (NonFiniteLossError, OSError) as error:
        fail(error, status=1)
    except InterruptedRunError as stop:
        console.print(stop, soft_wrap=True)
        sys.exit(stop.status)
    report(run, workdir, console)


def report(run: Run, workdir: Workdir, console: Console) -> None:
    """Evaluates the trained model; writes its summary and curves, prints its table."""
    with console.status("evaluating"):
        summary = summarize(run, FLAGS.mc_samples)
    write_json(workdir.summary, summary)
    print_table(console, summary)
    try:
        from experiments.figures import draw_curves
    except ImportError:
        console.print("no curves.png without matplotlib: pip install 'zaremba-jax[plots]'")
    else:
        draw_curves(workdir.curves, run.history, summary)
    console.print(f"the whole run is in {workdir.path}", soft_wrap=True)


if __name__ == "__main__":
    command_line.run(main)
