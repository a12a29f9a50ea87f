"""Compares every regularizer on every cell: `python -m experiments.ablation`.

Language modelling, memory, and how often information is corrupted; writes `report.md`, its
figures, and `results.json`.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FLAGS
from rich.console import Console
from rich.markdown import Markdown

from experiments.ablations import language_modelling, memory
from experiments.ablations.corruption import corruption_table
from experiments.ablations.figures import (
    final_perplexities_figure,
    language_modelling_figure,
    memory_figure,
)
from experiments.ablations.methods import METHODS
from experiments.ablations.parts import run_parts
from experiments.ablations.report_page import TITLE, language_table, report_page
from experiments.cli import program
from experiments.cli.flag_kinds import define_choices, define_path
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.terminal import Terminal
from experiments.reports.figures import is_picture, write_picture
from experiments.training.environment import environment
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json, write_text
from zaremba_jax.array_types import CellName
from zaremba_jax.cells import CELLS
from zaremba_jax.config import Config, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.published import load_published
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.presets import QUICK

LAGS_COUNTED = (1, 10, 100)
_FIGURES = {
    "final_perplexities.png": final_perplexities_figure,
    "language_modelling.png": language_modelling_figure,
    "memory.png": memory_figure,
}
_ASKED = (
    *("methods", "cells", "corpus", "seeds", "rates", "train_tokens", "layers", "hidden_size"),
    *("epochs", "memory_steps", "memory_lags", "memory_rate"),
)

define_choices("methods", list(METHODS), "methods to compare")
define_choices("cells", list(CELLS), "cells to compare")
flags.DEFINE_enum("corpus", "toy", ["toy", "ptb"], "the built-in corpus, or the Penn Treebank")
define_path("data_dir", None, "folder with the three ptb.*.txt files (default: download)")
define_path("cache_dir", None, "folder for the encoded text (default: the user's cache)")
define_path("workdir", "runs/ablation", "folder of the report")
flags.DEFINE_integer("seeds", 3, "runs of each candidate, side by side", lower_bound=1)
flags.DEFINE_integer("rates", 3, "candidates of each method", lower_bound=1, upper_bound=3)
flags.DEFINE_integer("train_tokens", 8000, "leading training tokens to read", lower_bound=2)
flags.DEFINE_integer("layers", 1, "layers of the language models", lower_bound=1)
flags.DEFINE_integer("hidden_size", 64, "units of each layer of the language models", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "epochs of each language model", lower_bound=1)
flags.DEFINE_integer("memory_steps", 400, "batches of the memory task; 0: none", lower_bound=0)
flags.DEFINE_integer("memory_lags", 100, "longest lag of the memory task", lower_bound=2)
flags.DEFINE_float(
    "memory_rate", 0.5, "dropout rate of the memory task", lower_bound=0.01, upper_bound=0.99
)


def main() -> None:
    """Measures, and writes the report."""
    console, folder = Terminal(), Path(FLAGS.workdir)
    asked = {name: FLAGS[name].value for name in _ASKED}
    config = configure()
    claim_folder(folder, asked)
    results = {"asked": asked, **measure_all(config, corpus_from_flags(), console)}
    write_json(folder / "results.json", results)
    write_text(folder / "report.md", report_page(results))
    for name, figure in _FIGURES.items():
        if figure is not memory_figure or results["memory"]["cells"]:
            write_picture(console, folder / name, figure, results)
    console.print(Markdown(language_table(results)))
    console.print(f"the report is {folder / 'report.md'}", soft_wrap=True)


def configure() -> Config:
    """The configuration that all language models share; refuses flags that do not go together."""
    if FLAGS.data_dir and FLAGS.corpus != "ptb":
        raise InputError(
            f"--data_dir={FLAGS.data_dir}: holds the Penn Treebank, but this run reads the"
            " built-in corpus; add --corpus=ptb or leave it out"
        )
    for name in ("memory_lags", "memory_rate"):
        if FLAGS[name].present and not FLAGS.memory_steps:
            raise InputError(
                f"--{name}: has no effect with --memory_steps=0; leave one of them out"
            )
    config = override(
        QUICK,
        corpus=FLAGS.corpus,
        dropout=0.0,
        layers=FLAGS.layers,
        hidden_size=FLAGS.hidden_size,
        batch_size=8,
        epochs=FLAGS.epochs,
        constant_epochs=FLAGS.epochs // 2,
        decay_divisor=1.5,
    )
    needed = config.train.batch_size * (config.train.unroll + 1)
    if FLAGS.train_tokens < needed:
        raise InputError(
            f"--train_tokens={FLAGS.train_tokens}: cannot fill {config.train.batch_size} streams"
            f" of {config.train.unroll} + 1; give at least {needed}"
        )
    return config


def claim_folder(folder: Path, asked: dict[str, Any]) -> None:
    """Creates and locks the folder of the report; refuses one with other results."""
    Workdir(folder).hold()  # another that measures would replace the report
    path = folder / "results.json"
    refuse_to_replace("workdir", folder / "report.md", "of this program", is_report)
    for name in _FIGURES:
        refuse_to_replace("workdir", folder / name, "of this program", is_picture)
    try:
        recorded = read_json_object(path).get("asked") if path.exists() else asked
    except ValueError:
        recorded = None
    if recorded != asked:
        raise InputError(
            f"--workdir={folder}: holds a report of other settings, or a damaged one; name another"
        )


def is_report(path: Path) -> bool:
    """Whether this program wrote a file as its report."""
    return path.read_bytes().startswith(TITLE.encode())


def corpus_from_flags() -> Corpus:
    """The texts, the training text cut to what is to be read."""
    if FLAGS.corpus == "ptb":
        corpus = load_published("ptb", FLAGS.data_dir, cache_dir=FLAGS.cache_dir)
    else:
        corpus = toy_corpus(valid_tokens=language_modelling.VALIDATION_TOKENS)
    return dataclasses.replace(corpus, train=corpus.train[: FLAGS.train_tokens])


def measure_all(config: Config, corpus: Corpus, console: Console) -> dict[str, Any]:
    """Measures everything that the report says."""
    started = time.monotonic()
    cells: list[CellName] = [cell for cell in CELLS if cell in FLAGS.cells]
    parts = language_modelling.language_parts(
        config, corpus, cells, FLAGS.methods, seeds=FLAGS.seeds, count=FLAGS.rates
    ) + memory.memory_parts(
        cells,
        rate=FLAGS.memory_rate,
        lags=FLAGS.memory_lags,
        steps=FLAGS.memory_steps,
        seeds=FLAGS.seeds,
    )
    measured = run_parts(parts, console)
    return {
        "config": to_dict(config),
        "corpus": corpus.name,
        "floor_perplexity": corpus.floor_perplexity,
        "train_tokens": len(corpus.train),
        "seeds": FLAGS.seeds,
        "learning_rates": {cell: language_modelling.LEARNING_RATES[cell] for cell in cells},
        "titles": {name: method.title for name, method in METHODS.items()},
        language_modelling.TASK: {
            cell: {name: records[name] for name in METHODS if name in records}
            for cell, records in measured[language_modelling.TASK].items()
        },
        memory.TASK: {
            "rate": FLAGS.memory_rate,
            "steps": memory.whole_chunks(FLAGS.memory_steps),
            "lags": FLAGS.memory_lags,
            "symbols": memory.SYMBOLS,
            "chance": 1 / memory.SYMBOLS,
            "settings": {cell: memory.SETTINGS[cell] for cell in cells if cell in memory.SETTINGS},
            "cells": measured.get(memory.TASK, {}),
        },
        "corruption": {"layers": 2, "masks": corruption_table(LAGS_COUNTED, layers=2)},
        "seconds": time.monotonic() - started,
        **environment(),
    }


if __name__ == "__main__":
    program.run(main)
