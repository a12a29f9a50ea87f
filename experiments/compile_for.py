"""Compiles training for accelerators that are absent: `python -m experiments.compile_for`.

Prints a table of what the compilers make of a whole epoch of the Penn Treebank: kernels per
time step, memory, and the least time that an epoch takes. With `--members`, the table is of an
ensemble over many devices: memory of each, what they exchange, and the time.
"""

import os
import time
from collections.abc import Iterator
from itertools import product
from typing import get_args

import jax
from absl import flags
from rich.table import Table

from experiments.cli import program
from experiments.cli.flag_kinds import define_choices
from experiments.cli.program import FLAGS
from experiments.cli.terminal import Terminal
from experiments.compilers.ensemble_programs import report_members
from experiments.compilers.targets import (
    TARGETS,
    Target,
    compile_epoch,
    report,
    windows_per_epoch,
)
from zaremba_jax.config import PRESETS, Config, Precision, override
from zaremba_jax.errors import InputError

_NAMES = ("target", "config", "precision")
_NUMBERS = ("forward", "backward", "copy kB", "mem. MB", "step ms", "epoch s", "built s")
_AT_LEAST = (
    "lower bounds, from the rates and bandwidths in the maker's data sheet and, on NVIDIA, 1.8 µs"
    " per kernel, as measured on an H100."
)
_KERNELS_NOTE = (
    "Forward, backward: kernels of a layer per time step. Copy: the largest array that a time step"
    " writes and that is not a matrix product. Mem.: beyond arguments and results. Step (a window)"
    f" and epoch: {_AT_LEAST} Built: seconds to compile."
)
_ENSEMBLE_NUMBERS = ("devices", "each", "at once", "GB", "of", "shared", "step ms", "hours")
_ENSEMBLE_NOTE = (
    "Each: members per device, padding included; at once: how many of them are trained together."
    " GB: the memory that a device needs, of what it has. Shared: how devices communicate in a"
    " step. Step: a window of all of a device's members; hours: all epochs of the configuration;"
    f" both are {_AT_LEAST}"
)

_PTB = [name for name, config in PRESETS.items() if config.corpus == "ptb"]

define_choices("targets", list(TARGETS), "accelerators to compile for")
define_choices("configs", _PTB, "presets to compile")
define_choices("precisions", list(get_args(Precision)), "precisions to compile for")
flags.DEFINE_integer("members", None, "compile an ensemble of this many instead", lower_bound=1)
flags.DEFINE_list("devices", ["1"], "numbers of devices to spread the ensemble over")
flags.register_validator(
    "devices",
    lambda values: bool(values) and all(x.isdecimal() and int(x) > 0 for x in values),
    message="give positive numbers, separated by commas",
)
flags.DEFINE_integer(
    "members_at_once",
    None,
    "members that a device trains together (default: what its memory allows)",
    lower_bound=1,
)


def main() -> None:
    """Compiles every combination that the flags name, and prints a table of them."""
    # Otherwise libtpu asks a Google Cloud server which machines belong to this one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    console = Terminal()
    if not FLAGS.members and (FLAGS["devices"].present or FLAGS.members_at_once):
        raise InputError("--devices, --members_at_once: apply to an ensemble; give --members too")
    numbers, note = _NUMBERS, _KERNELS_NOTE
    if FLAGS.members:
        numbers, note = _ENSEMBLE_NUMBERS, _ENSEMBLE_NOTE
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in _NAMES:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right")
    for target, name, precision in product(FLAGS.targets, FLAGS.configs, FLAGS.precisions):
        config = override(PRESETS[name], precision=precision)
        with console.status(f"compiling {name} in {precision} for {target}"):
            try:
                rows = _ensemble_rows if FLAGS.members else _kernels_rows
                for row in rows(config, TARGETS[target]):
                    table.add_row(target, name, precision, *row)
            except InputError:
                if table.rows:
                    console.print(table)
                raise
    console.print(table)
    console.print(note)


def _kernels_rows(config: Config, target: Target) -> Iterator[list[str]]:
    start = time.perf_counter()
    compiled = compile_epoch(config, target)
    seconds = time.perf_counter() - start
    figures = report(compiled, target)
    yield [
        f"{figures.forward_kernels:.3g}",
        f"{figures.backward_kernels:.3g}",
        f"{figures.largest_copy / 1e3:,.0f}",
        f"{figures.temporary_bytes / 1e6:,.0f}",
        f"{1e3 * figures.epoch_seconds / windows_per_epoch(config):.3f}",
        f"{figures.epoch_seconds:.1f}",
        f"{seconds:.0f}",
    ]


def _ensemble_rows(config: Config, target: Target) -> Iterator[list[str]]:
    for devices in map(int, FLAGS.devices):
        figures = report_members(
            config, target, FLAGS.members, devices, at_once=FLAGS.members_at_once
        )
        yield [
            f"{devices}",
            f"{figures.members}",
            f"{figures.at_once}",
            f"{figures.device_bytes / 1e9:.1f}",
            f"{target.memory_bytes / 1e9:.0f}",
            ", ".join(figures.collectives) or "none",
            f"{1e3 * figures.epoch_seconds / windows_per_epoch(config):.2f}",
            f"{config.train.epochs * figures.epoch_seconds / 3600:.2f}",
        ]


if __name__ == "__main__":
    program.run(main)
