"""Flags of the programs that train many models, and the ensemble that they ask for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from rich.console import Console

from experiments.command_line import FLAGS
from experiments.members import EnsembleRun, default_at_once, new_ensemble
from experiments.run_flags import begin, configure, join_hosts, load_corpus, with_kernel
from experiments.workdir import Workdir
from zaremba_jax.config import Config
from zaremba_jax.corpus import Corpus
from zaremba_jax.ensemble import make_mesh

flags.DEFINE_integer(
    "members",
    None,
    "models, with seeds from --seed on (default: 10; of the paper's table, as many as there; of a"
    " sweep, one of each)",
    lower_bound=1,
)
flags.DEFINE_list(
    "sizes", None, "how many members to average, with commas (default: 1,2,5,10,38 and all)"
)
flags.DEFINE_integer(
    "members_at_once",
    None,
    "members that a device trains together (default: by its memory; a CPU one)",
    lower_bound=1,
)


def asked_sizes(members: int) -> list[int] | None:
    """What `--sizes` asks for, of so many members.

    Raises:
      ValueError: it is no list of numbers, or there are not so many members.
    """
    if FLAGS.sizes is None:
        return None
    for size in FLAGS.sizes:
        if not size.isdecimal() or not 0 < int(size) <= members:
            raise ValueError(f"--sizes={size}: there are {members} members; give numbers from 1 on")
    return [int(size) for size in FLAGS.sizes]


def at_once_on(mesh: Mesh, config: Config, corpus: Corpus, members: int) -> int:
    """How many of so many members each device of a mesh trains together."""
    return FLAGS.members_at_once or default_at_once(config, corpus, members, mesh)


def prepare(
    members_of: Callable[[Config], list[Config]], **more: Any
) -> tuple[EnsembleRun, Workdir, Console]:
    """The ensemble that the flags ask for, its folder, and what takes its lines.

    Args:
      members_of: makes the configurations of all members from one.
      more: what the folder keeps beside the configuration.

    Raises:
      ValueError: the flags do not go together, or not with the folder or the text.
    """
    config, workdir = configure(**more)
    console = join_hosts()
    mesh, corpus = make_mesh(jax.devices(), FLAGS.data_parallel), load_corpus(config)
    run = open_ensemble(config, members_of, corpus, mesh, workdir, console, **more)
    return run, workdir, console


def open_ensemble(
    config: Config,
    members_of: Callable[[Config], list[Config]],
    corpus: Corpus,
    mesh: Mesh,
    workdir: Workdir,
    console: Console,
    **more: Any,
) -> EnsembleRun:
    """The ensemble that the flags ask for, where its folder has it.

    Args:
      config: as asked for.
      members_of: makes the configurations of all members from one.
      corpus: what is read.
      mesh: of all devices.
      workdir: its folder.
      console: takes what there is to say.
      more: what the folder keeps beside the configuration.

    Raises:
      ValueError: the flags do not go together, or not with the folder or the text.
    """
    members = len(members_of(config))
    at_once = at_once_on(mesh, config, corpus, members)
    taken, kernel = with_kernel(config, corpus, workdir, console, min(at_once, members))
    run = new_ensemble(members_of(taken), corpus, at_once, mesh, console, FLAGS.resident)
    return begin(dataclasses.replace(run, kernel=kernel), workdir, config, console, **more)
