"""Compiles training for accelerators that are absent: `python -m experiments.compile_for`.

Prints a table of what the compilers make of a whole epoch of the Penn Treebank: kernels per
time step, memory, and the least time that an epoch takes. With `--members`, the table is of an
ensemble over many devices: memory of each, what they exchange, and the time.
"""

import os
from itertools import product
from typing import get_args

import jax
from absl import flags
from absl.flags import FLAGS

from experiments.cli import program
from experiments.cli.flag_kinds import define_choices
from experiments.cli.terminal import Terminal
from experiments.compilers.tables import EnsembleTable, EpochTable, empty_table
from experiments.compilers.targets import TARGETS, devices_of
from zaremba_jax.config import Precision, override
from zaremba_jax.errors import InputError
from zaremba_jax.presets import AWD, PAPER_PERPLEXITIES, PRESETS

define_choices("targets", list(TARGETS), "accelerators to compile for")
define_choices("configs", [*PAPER_PERPLEXITIES, AWD.name], "presets to compile")
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
    console, kind = Terminal(), EpochTable()
    if FLAGS.members:
        kind = EnsembleTable(FLAGS.members, list(map(int, FLAGS.devices)), FLAGS.members_at_once)
    elif FLAGS["devices"].present or FLAGS.members_at_once:
        raise InputError("--devices, --members_at_once: apply to an ensemble; give --members too")
    for target, count in product(FLAGS.targets, kind.devices):
        devices_of(TARGETS[target], count)  # refuses what there is not, before the minutes
    table = empty_table(kind.numbers)
    try:
        for target, name, precision in product(FLAGS.targets, FLAGS.configs, FLAGS.precisions):
            config = override(PRESETS[name], precision=precision)
            with console.status(f"compiling {name} in {precision} for {target}"):
                for row in kind.rows(config, TARGETS[target]):
                    table.add_row(target, name, precision, *row)
    finally:  # what was compiled, though what follows could not be
        if table.rows:
            console.print(table)
    console.print(kind.note)


if __name__ == "__main__":
    program.run(main)
