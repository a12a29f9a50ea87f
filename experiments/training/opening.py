"""What a run says before it trains: where it computes, what it reads, and how much it needs.

Each line fits 80 columns, unless names of the user's are long.
"""

import importlib.metadata
import math
import os

import jax
from rich.console import Console

from experiments.training.environment import device_memory, device_name, is_installed
from experiments.training.run import Run
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.model import count_params, param_shapes
from zaremba_jax.parallel.members import memory_needed


def print_devices(console: Console, used: int) -> None:
    """Says on what the run computes, and loudly if an accelerator may be meant instead."""
    unused = f" (of {jax.device_count()})" if used < jax.device_count() else ""
    console.print(f"device: {device_name(used)}{unused}", soft_wrap=True)
    plugins = accelerator_plugins()
    if jax.default_backend() == "cpu" and plugins:
        chosen = os.environ.get("JAX_PLATFORMS")
        why = f"JAX_PLATFORMS={chosen} says so" if chosen else "jax finds no such device"
        console.print(
            f"WARNING: {', '.join(plugins)} is installed, but the CPU is used: {why}",
            style="bold red",
            soft_wrap=True,
        )


def accelerator_plugins() -> list[str]:
    """The installed plugins by which jax reaches accelerators."""
    found = {point.name for point in importlib.metadata.entry_points(group="jax_plugins")}
    if is_installed("libtpu"):
        found.add("libtpu")
    return sorted(found)


def print_run(run: Run, console: Console) -> None:
    """Says how large the text and the models are, and what training takes of a device's memory."""
    corpus, train = run.corpus, run.config.train
    noun = UNITS[corpus.vocabulary.unit].noun
    share = unknown_share(corpus)
    unknown = "" if share is None else f", {share:.1%} {UNK}"
    epochs = "1 epoch" if train.epochs == 1 else f"{train.epochs} epochs"
    types, models = len(corpus.vocabulary), len(run.all_configs)
    parameters = count_params(param_shapes(run.config.model, types))
    several = f"{models} models of " if models > 1 else ""
    needed = run.windows.resident_bytes + memory_needed(run.config, types, *run.models_on_device)
    for line in (
        f"text: {corpus.name}, {len(corpus.train):,} {noun}s, {types:,} types{unknown}",
        f"model: {several}{parameters:,} parameters",
        f"training: {epochs} × {len(run.windows):,} windows; the arrays take about"
        f" {_size(needed)} of {_size(device_memory())}",
    ):
        console.print(line, soft_wrap=True)


def unknown_share(corpus: Corpus) -> float | None:
    """The share of `<unk>` in the training text; None if the vocabulary has none."""
    counts, words = corpus.counts, corpus.vocabulary.words
    return counts[words.index(UNK)] / len(corpus.train) if UNK in words else None


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes > 2**30 else f"{math.ceil(nbytes / 2**20)} MiB"
