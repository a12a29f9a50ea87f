"""Compares every regularizer on every cell: `python -m experiments.ablation`.

Language modelling, memory, and how often information is corrupted; writes `report.md`, its
figures, and `results.json`.
"""

import dataclasses
import functools
import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.ablations import language_modelling, memory
from experiments.ablations.corruption import corruption_table
from experiments.ablations.page import language_table, report
from experiments.cli import program
from experiments.cli.flag_kinds import define_choices, define_path
from experiments.cli.program import FLAGS
from experiments.cli.terminal import Terminal, draw
from experiments.reports.summary import cores, environment
from experiments.training.run_folder import write_json
from zaremba_jax.array_types import CellName
from zaremba_jax.cells import CELLS
from zaremba_jax.config import QUICK, Config, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.published import load_published
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.errors import InputError

LAGS_COUNTED = (1, 10, 100)
_ASKED = (
    *("methods", "cells", "corpus", "seeds", "rates", "train_tokens", "layers", "hidden_size"),
    *("epochs", "memory_steps", "memory_lags", "memory_rate"),
)

define_choices("methods", list(language_modelling.METHODS), "methods to compare")
define_choices("cells", list(CELLS), "cells to compare")
flags.DEFINE_enum("corpus", "toy", ["toy", "ptb"], "the built-in corpus, or the Penn Treebank")
define_path("data_dir", None, "folder with the three ptb.*.txt files (default: download)")
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


def configure() -> tuple[Config, Corpus]:
    """The configuration that all language models share, and their texts.

    Raises:
      InputError: the flags do not go together.
      OSError: the corpus or the working directory cannot be used.
    """
    if FLAGS.data_dir and FLAGS.corpus != "ptb":
        raise InputError(
            f"--data_dir={FLAGS.data_dir}: holds the Penn Treebank, but this run reads the"
            " built-in corpus; add --corpus=ptb or leave it out"
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
    _check_folder(Path(FLAGS.workdir))
    if FLAGS.corpus == "ptb":
        corpus = load_published("ptb", FLAGS.data_dir)
    else:
        corpus = toy_corpus(valid_tokens=language_modelling.VALIDATION_TOKENS)
    return config, dataclasses.replace(corpus, train=corpus.train[: FLAGS.train_tokens])


def _asked() -> dict[str, Any]:
    return {name: FLAGS[name].value for name in _ASKED}


def _check_folder(folder: Path) -> None:
    """Creates the folder of the report.

    Raises:
      InputError: it holds a report of other settings, or a damaged one.
      OSError: it cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    try:
        recorded = dict(json.loads(path.read_text())).get("asked") if path.exists() else _asked()
    except (ValueError, TypeError):
        recorded = None
    if recorded != _asked():
        raise InputError(
            f"--workdir={folder}: holds a report of other settings, or a damaged one; name another,"
            " or remove it"
        )


class JobProgress:
    """Shows a bar on a terminal and a line for each finished part; Ctrl-C stops the jobs."""

    def __init__(self, console: Console):
        self._console, self._stopped = console, threading.Event()
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=None)

    def __enter__(self) -> "JobProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._stopped.set()
        self._bar.stop()

    def expect(self, steps: int) -> None:
        """Sets how many times `advance` will be called."""
        self._bar.update(self._task, total=steps)

    def advance(self, description: str) -> None:
        """Advances the bar by one step; raises `RuntimeError` if the work was stopped."""
        if self._stopped.is_set():
            raise RuntimeError("stopped")
        self._bar.update(self._task, advance=1, description=description)

    def done(self, part: str) -> None:
        """Prints that a part is finished."""
        seconds = time.monotonic() - self._started
        self._console.print(f"{seconds:6.1f} s  {part}", soft_wrap=True)


class Job(NamedTuple):
    """A part of the work that depends on no other."""

    part: str  # "language_modelling" or "memory"
    cell: CellName
    run: Callable[[], dict[str, Any]]


def plan(config: Config, corpus: Corpus, on_progress: Callable[[str], None]) -> list[Job]:
    """All jobs, the longest first."""
    jobs = []
    for group, cell in itertools.product(language_modelling.groups(FLAGS.methods), _cells()):
        run = functools.partial(
            language_modelling.compare,
            *(config, corpus, cell, group),
            seeds=FLAGS.seeds,
            count=FLAGS.rates,
            on_progress=on_progress,
        )
        jobs.append(Job("language_modelling", cell, run))
    for cell in memory.SETTINGS if FLAGS.memory_steps else ():
        run = functools.partial(
            memory.measure,
            cell,
            rate=FLAGS.memory_rate,
            lags=FLAGS.memory_lags,
            steps=FLAGS.memory_steps,
            seeds=FLAGS.seeds,
            on_progress=on_progress,
        )
        jobs.append(Job("memory", cell, run))
    return jobs


def work(config: Config, corpus: Corpus, console: Console) -> dict[str, dict[str, Any]]:
    """Runs all jobs, as many at a time as there are cores; returns results by part and cell."""
    parts: dict[str, Any] = {"language_modelling": {cell: {} for cell in _cells()}, "memory": {}}
    with ThreadPoolExecutor(cores()) as pool, JobProgress(console) as progress:
        todo = plan(config, corpus, progress.advance)
        steps = {"language_modelling": FLAGS.epochs, "memory": memory.CHUNKS}
        progress.expect(sum(steps[job.part] for job in todo))
        futures = {pool.submit(job.run): job for job in todo}
        try:
            for future in as_completed(futures):
                job = futures[future]
                parts[job.part][job.cell] = parts[job.part].get(job.cell, {}) | future.result()
                progress.done(f"{job.part.replace('_', ' ')}, {job.cell}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for cell, records in parts["language_modelling"].items():
        parts["language_modelling"][cell] = {
            name: records[name] for name in language_modelling.METHODS if name in records
        }
    return parts


def _cells() -> list[CellName]:
    return [cell for cell in CELLS if cell in FLAGS.cells]


def gather(config: Config, corpus: Corpus, console: Console) -> dict[str, Any]:
    """Measures everything that the report says."""
    started = time.monotonic()
    parts = work(config, corpus, console)
    return {
        "asked": _asked(),
        "config": to_dict(config),
        "corpus": corpus.name,
        "floor_perplexity": corpus.floor_perplexity,
        "train_tokens": len(corpus.train),
        "seeds": FLAGS.seeds,
        "learning_rates": language_modelling.LEARNING_RATES,
        "titles": {name: method.title for name, method in language_modelling.METHODS.items()},
        "language_modelling": parts["language_modelling"],
        "memory": {
            "rate": FLAGS.memory_rate,
            "steps": memory.whole_chunks(FLAGS.memory_steps),
            "lags": FLAGS.memory_lags,
            "symbols": memory.SYMBOLS,
            "chance": 1 / memory.SYMBOLS,
            "settings": memory.SETTINGS,
            "cells": {cell: parts["memory"][cell] for cell in memory.SETTINGS if parts["memory"]},
        },
        "corruption": {"layers": 2, "masks": corruption_table(LAGS_COUNTED, layers=2)},
        "seconds": time.monotonic() - started,
        **environment(),
    }


def main() -> None:
    """Measures, and writes the report."""
    console = Terminal()
    folder = Path(FLAGS.workdir)
    config, corpus = configure()
    results = gather(config, corpus, console)
    write_json(folder / "results.json", results)
    (folder / "report.md").write_text(report(results), encoding="utf-8")
    draw(console, folder / "language_modelling.png", "draw_language_modelling", results)
    if results["memory"]["cells"]:
        draw(console, folder / "memory.png", "draw_memory", results)
    console.print(Markdown(language_table(results)))
    console.print(f"the report is {folder / 'report.md'}", soft_wrap=True)


if __name__ == "__main__":
    program.run(main)
