"""Flags of the training programs: the settings, the folder, and how the run is trained."""

from collections.abc import Mapping
from pathlib import Path

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
from experiments.training.environment import is_installed
from experiments.training.opening import print_devices
from experiments.training.run_folder import Workdir, shortened
from zaremba_jax.config import Config, completed, override
from zaremba_jax.json_text import read_json_object

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
            lambda wanted, package=package: not wanted or is_installed(package),
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
