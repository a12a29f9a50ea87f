"""Compiles training for accelerators that are absent: `python -m experiments.compile_for`.

A table of what the compilers make of a whole epoch of the Penn Treebank: kernels a time step,
memory, and the time that an epoch takes at least.
"""

import os
import time
from itertools import product
from typing import get_args

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import command_line
from experiments.command_line import FLAGS, fail
from experiments.targets import (
    TARGETS,
    MissingCompilerError,
    Report,
    compile_epoch,
    report,
    windows_per_epoch,
)
from zaremba_jax.config import PRESETS, Config, override
from zaremba_jax.precision import Precision

_NAMES = ("target", "config", "precision")
_NUMBERS = ("forward", "backward", "copy kB", "mem. MB", "step ms", "epoch s", "built s")

_CHOICES = {
    "targets": list(TARGETS),
    "configs": [name for name, preset in PRESETS.items() if preset.corpus == "ptb"],
    "precisions": list(get_args(Precision)),
}
for _name, _choices in _CHOICES.items():
    flags.DEFINE_list(_name, _choices, f"{_name}, with commas between them")
    flags.register_validator(
        _name,
        lambda values, known=frozenset(_choices): set(values) <= known,
        message=f"only {', '.join(_choices)} are known",
    )


def main() -> None:
    """Compiles every combination that the flags name, and prints a table of them."""
    # Otherwise libtpu asks a server of Google's cloud which machines belong to this one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in _NAMES:
        table.add_column(column, no_wrap=True)
    for column in _NUMBERS:
        table.add_column(column, justify="right")
    for target, name, precision in product(FLAGS.targets, FLAGS.configs, FLAGS.precisions):
        config = override(PRESETS[name], precision=precision)
        start = time.perf_counter()
        with console.status(f"compiling {name} in {precision} for {target}"):
            try:
                compiled = compile_epoch(config, TARGETS[target])
            except MissingCompilerError as error:
                fail(error)
        seconds = time.perf_counter() - start
        found = report(compiled, config, TARGETS[target])
        table.add_row(target, name, precision, *_cells(config, found), f"{seconds:.0f}")
    console.print(table)
    console.print(
        "Forward, backward: kernels of a layer for one time step. Copy: the largest array that a"
        " time step writes and that is no product. Mem.: beside arguments and results. Step (a"
        " window) and epoch: at least, by the rates and bandwidths of the maker's data sheet."
    )


def _cells(config: Config, found: Report) -> list[str]:
    return [
        f"{found.forward_kernels:g}",
        f"{found.backward_kernels:g}",
        f"{found.largest_copy / 1e3:,.0f}",
        f"{found.temporary_bytes / 1e6:,.0f}",
        f"{1e3 * found.epoch_seconds / windows_per_epoch(config):.3f}",
        f"{found.epoch_seconds:.1f}",
    ]


if __name__ == "__main__":
    command_line.run(main)
