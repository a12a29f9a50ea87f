"""The runs that the flags describe: opened, resumed if their folder holds them, and trained."""

from typing import Any

import jax
from absl.flags import FLAGS
from jax.sharding import Mesh
from rich.console import Console

from experiments.cli.initial_model import initial_model
from experiments.cli.text_flags import load_corpus
from experiments.training.curves import Board, Curves
from experiments.training.ensemble_run import (
    EnsembleRun,
    default_at_once,
    new_ensemble,
    refuse_patience,
)
from experiments.training.environment import device_memory
from experiments.training.hosts import require_alike
from experiments.training.kernel_choice import choose_kernel, local_workload
from experiments.training.loop import train
from experiments.training.opening import print_run
from experiments.training.resumption import resume
from experiments.training.run import Run
from experiments.training.run_folder import Workdir
from experiments.training.single_run import SingleRun, new_run
from experiments.training.tensorboard import TensorBoard
from experiments.training.wandb_run import WandbRun
from experiments.training.written_files import write_json
from zaremba_jax.checkpoint import clear_after
from zaremba_jax.config import Config, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.model import Model, count_params, param_shapes
from zaremba_jax.parallel.members import members_on_device
from zaremba_jax.parallel.mesh import make_mesh

# What all hosts need alike, besides the settings and the text.
_OF_ALL_HOSTS = (
    *("vary", "members", "members_at_once", "data_parallel"),
    *("chunk", "samples_each_epoch", "tensorboard", "wandb"),
)


def open_run(
    config: Config,
    corpus: Corpus,
    workdir: Workdir,
    console: Console,
    initial: Model | None = None,
) -> SingleRun:
    """The run of one model that the flags specify, resumed if its folder holds it.

    It starts from the parameters of `initial`, if that is given.
    """
    resolved, kernel = with_kernel(config, corpus, workdir, console)
    params = None if initial is None else initial.params
    run = new_run(resolved, corpus, FLAGS.data_parallel, FLAGS.resident, params)
    run.kernel = kernel
    begin(run, workdir, config, console)
    return run


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
    resident = members_on_device(members, mesh)
    together = min(at_once, resident)
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


def at_once_on(mesh: Mesh, config: Config, corpus: Corpus, members: int) -> int:
    """How many of the members each device of a mesh trains together."""
    return FLAGS.members_at_once or default_at_once(config, corpus, members, mesh, FLAGS.resident)


def with_kernel(
    config: Config,
    corpus: Corpus,
    workdir: Workdir,
    console: Console,
    members: int = 1,
    resident: int = 1,
) -> tuple[Config, dict[str, Any]]:
    """The configuration, with the chosen kernel in place of `auto`, and how it was chosen.

    Of the `resident` models that stay on a device, it trains `members` together.
    """
    given = {name: FLAGS[name].value for name in _OF_ALL_HOSTS if name in FLAGS}
    require_alike(settings=to_dict(config), text=corpus.fingerprint, **given)
    _require_memory(config, len(corpus.vocabulary), resident)
    workload = local_workload(
        config, len(corpus.vocabulary), members=members, data_parallel=FLAGS.data_parallel
    )
    choice = choose_kernel(workload, workdir.kernel, console)
    if config.compute.kernel == "auto":
        config = override(config, kernel=choice["kernel"])
    return config, choice


def _require_memory(config: Config, types: int, models: int) -> None:
    """Refuses models that no memory here can hold, before anything is compiled for them.

    Raises:
      InputError: their parameters, and the gradient of one of them, alone take more.
    """
    layers, hidden = config.model.layers, config.model.hidden_size
    needed = 4 * (models + 1) * count_params(param_shapes(config.model, types))
    memory = device_memory()
    if needed > memory:
        several = f"{models} models on a device, " if models > 1 else ""
        raise InputError(
            f"{several}layers={layers}, hidden_size={hidden}, {types:,} types: the parameters"
            f" and a gradient take {needed / 2**30:,.0f} GiB, and the device has"
            f" {memory / 2**30:,.0f}; give a smaller model{' or fewer' if models > 1 else ''}"
        )


def begin(run: Run, workdir: Workdir, config: Config, console: Console, **more: Any) -> None:
    """Resumes the run if its folder holds it; locks the folder against other processes.

    `config` is as requested, without the choice of a kernel; the folder keeps it, and `more`.
    """
    workdir.hold()
    print_run(run, console)
    resume(run, workdir, console)
    clear_after(workdir.checkpoints, run.step)
    workdir.write_config(config, **more)
    if config.compute.kernel == "auto":
        write_json(workdir.kernel, run.kernel)


def open_curves(run: Run, workdir: Workdir, console: Console) -> Curves:
    """The curves that the flags ask for, to be open until the figures at the end are known."""
    boards: list[Board] = []
    if FLAGS.tensorboard:
        boards.append(TensorBoard(workdir.tensorboard, run.step))
    if FLAGS.wandb:
        boards.append(WandbRun(workdir))
    return Curves(boards, to_dict(run.config), console)


def train_by_flags(run: Run, workdir: Workdir, console: Console, curves: Curves) -> None:
    """Trains to the last epoch, with the chunks and checkpoints that the flags specify."""
    train(
        run,
        workdir,
        console,
        chunk=FLAGS.chunk,
        checkpoint_minutes=FLAGS.checkpoint_minutes,
        log_minutes=FLAGS.log_minutes,
        samples=FLAGS.samples_each_epoch,
        curves=curves,
    )
