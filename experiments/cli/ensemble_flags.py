"""Flags of the programs that train many models, and the ensemble that they describe."""

from typing import Any

import jax
from absl import flags
from absl.flags import FLAGS
from jax.sharding import Mesh
from rich.console import Console

from experiments.cli.help import flag_group
from experiments.cli.initial_model import initial_model
from experiments.cli.text_flags import load_corpus
from experiments.cli.training_flags import begin, with_kernel
from experiments.training.ensemble_run import (
    EnsembleRun,
    default_at_once,
    new_ensemble,
    refuse_patience,
)
from experiments.training.run_folder import Workdir
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.model import Model
from zaremba_jax.parallel.members import members_on_device
from zaremba_jax.parallel.mesh import make_mesh

MOST_MEMBERS = 100_000

with flag_group("many models"):
    flags.DEFINE_integer(
        "members",
        None,
        "models to train, with consecutive seeds from --seed (default: 10; for the paper's table,"
        " as many as in the paper; in a sweep, one per combination)",
        lower_bound=1,
        upper_bound=MOST_MEMBERS,
    )
    flags.DEFINE_list(
        "sizes",
        None,
        "numbers of members to average, comma-separated (default: 1,2,5,10,38 and all)",
    )
    flags.DEFINE_integer(
        "members_at_once",
        None,
        "members that a device trains together (default: what its memory allows; on a CPU, one)",
        lower_bound=1,
    )


def sizes_from_flags(members: int) -> list[int] | None:
    """The sizes given by `--sizes`, each from 1 to `members`; None if it is not given."""
    if FLAGS.sizes is None:
        return None
    for size in FLAGS.sizes:
        if not size.isdecimal() or not 0 < int(size) <= members:
            raise InputError(
                f"--sizes={size}: there are {members} members; give numbers from 1 up to that"
            )
    return [int(size) for size in FLAGS.sizes]


def at_once_on(mesh: Mesh, config: Config, corpus: Corpus, members: int) -> int:
    """How many of the members each device of a mesh trains together."""
    return FLAGS.members_at_once or default_at_once(config, corpus, members, mesh)


def prepare(
    config: Config, configs: list[Config], workdir: Workdir, console: Console, **more: Any
) -> EnsembleRun:
    """The ensemble that the flags describe, resumed if its folder holds it.

    A member has each of `configs`, all made from `config`, which the folder keeps with `more`.
    """
    refuse_patience(config)  # before a text is read
    mesh, initial = make_mesh(jax.devices(), FLAGS.data_parallel), initial_model(config)
    corpus = load_corpus(config, initial)
    return open_ensemble(config, configs, corpus, mesh, workdir, console, initial, **more)


def open_ensemble(
    config: Config,
    configs: list[Config],
    corpus: Corpus,
    mesh: Mesh,
    workdir: Workdir,
    console: Console,
    initial: Model | None = None,
    **more: Any,
) -> EnsembleRun:
    """As `prepare`, on a text; all members go on from the parameters of `initial`, if given."""
    members = len(configs)
    at_once = at_once_on(mesh, config, corpus, members)
    resident, together = members_on_device(members, mesh), min(at_once, members)
    resolved, kernel = with_kernel(config, corpus, workdir, console, together, resident)
    run = new_ensemble(
        [override(member, kernel=resolved.compute.kernel) for member in configs],
        corpus,
        at_once,
        mesh,
        console,
        FLAGS.resident,
        None if initial is None else initial.params,
    )
    run.kernel = kernel
    begin(run, workdir, config, console, **more)
    return run
