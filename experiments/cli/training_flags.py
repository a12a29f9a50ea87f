"""Flags of the training programs: the settings, the folder, and how the run is trained."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from absl.flags import FLAGS
from rich.console import Console

from experiments.cli import host_flags, initial_model, text_flags
from experiments.cli.config_flags import COMPUTATION, config_from_flags, define_config_flags
from experiments.cli.flag_kinds import define_path
from experiments.cli.help import flag_group
from experiments.cli.host_flags import join_hosts
from experiments.cli.initial_model import with_initial_model
from experiments.cli.text_flags import with_text_settings
from experiments.training.curves import Board, Curves
from experiments.training.environment import device_memory
from experiments.training.hosts import require_alike
from experiments.training.kernel_choice import choose_kernel, local_workload
from experiments.training.loop import train
from experiments.training.opening import print_devices, print_run
from experiments.training.resumption import resume
from experiments.training.run import Run
from experiments.training.run_folder import Workdir, shortened
from experiments.training.single_run import SingleRun, new_run
from experiments.training.tensorboard import TensorBoard
from experiments.training.wandb_run import WandbRun
from experiments.training.written_files import write_json
from zaremba_jax.checkpoint import clear_after
from zaremba_jax.config import Config, completed, override, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.model import Model, count_params, param_shapes

# What all hosts need alike, besides the settings and the text.
_OF_ALL_HOSTS = (
    *("vary", "members", "members_at_once", "data_parallel"),
    *("chunk", "samples_each_epoch", "tensorboard", "wandb"),
)

define_config_flags()
flags.adopt_module_key_flags(text_flags)
flags.adopt_module_key_flags(initial_model)
with flag_group(COMPUTATION):
    flags.DEFINE_bool(
        "resident", None, "keep the whole training text on the device (default: if it fits)"
    )
    flags.DEFINE_integer("chunk", 20, "windows trained between checks by the host", lower_bound=1)
    flags.DEFINE_integer(
        "data_parallel", 1, "devices that share the streams of a model's batch", lower_bound=1
    )
with flag_group("folder and reports"):
    define_path("workdir", None, "folder of the run (default: in runs/, by the settings)")
    flags.DEFINE_float("checkpoint_minutes", 10, "save this often within an epoch", lower_bound=0)
    flags.DEFINE_float(
        "log_minutes", 5, "off a terminal, print a line this often within an epoch", lower_bound=0
    )
    flags.DEFINE_integer(
        "samples_each_epoch",
        0,
        "lines that the model writes after each epoch",
        lower_bound=0,
        upper_bound=1000,
    )
    flags.DEFINE_bool("tensorboard", False, "write curves and gates for TensorBoard")
    flags.DEFINE_bool("wandb", False, "show curves and gates on Weights & Biases")
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        flags.register_validator(
            name,
            lambda wanted, package=package: not wanted or _is_installed(package),
            message=f"needs {package}, which is not installed; leave it out, or"
            f" pip install 'zaremba-jax[{name}]'",
        )
flags.adopt_module_key_flags(host_flags)


def open_console(devices: int | None = None) -> Console:
    """Joins the run's other processes, if any, and says on how many devices the run computes.

    On all, unless fewer are asked for. To be called before anything uses a device. The console
    is silent except on process 0.
    """
    console = join_hosts()
    count = jax.device_count()
    print_devices(console, min(devices or count, count))
    return console


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as wandb leaves, is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        return False
    return spec is not None and spec.origin is not None


def configure(base: Mapping[str, float] | None = None, **more: object) -> tuple[Config, Workdir]:
    """The configuration and the working directory that the flags specify.

    `base` are settings to use in place of the preset's. `more` are settings of a program besides
    the configuration's; the default directory is named after them too.
    """
    config, changes = config_from_flags(base)
    config = with_initial_model(with_text_settings(config, changes), changes)
    if config.corpus == "files":  # last, whether --corpus says so too or --train_file alone
        changes.pop("corpus", None)
        changes["corpus"] = "files"
    files = {name: FLAGS[name].value for name in ("vocabulary", "init_from")}
    named = changes | {name: _short(path) for name, path in files.items() if path} | more
    workdir = default_workdir(config.name, *(f"{key}={named[key]}" for key in named))
    if config.corpus == "files" and "keep" not in changes:
        config = override(config, keep=_kept_in(workdir))
    workdir.refuse_another_run(config, **more)
    return config, workdir


def _kept_in(workdir: Workdir) -> str:
    """The setting `keep` of a run on own text: that of the run in its folder, or `best`."""
    try:
        return completed(read_json_object(workdir.config))["keep"]
    except (OSError, ValueError, TypeError):  # none is there, or `refuse_another_run` tells
        return "best"


def _short(path: str) -> str:
    """The part of a path that a person knows it by; of a run's model, the folder of the run."""
    file = Path(path).resolve()
    named = file.parent if file == Workdir(file.parent).model else file
    return named.name.removesuffix(".safetensors")


def default_workdir(*parts: str) -> Workdir:
    """The folder of `--workdir`, or one under `runs/` that is named after the parts."""
    return Workdir(FLAGS.workdir or Path("runs") / shortened("-".join(parts)))


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
