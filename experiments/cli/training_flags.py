"""What the training programs share: settings, text, folder, devices, and how they end."""

import dataclasses
import hashlib
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from experiments.cli.config_flags import config_from_flags, define_config_flags
from experiments.cli.flag_kinds import define_path
from experiments.cli.program import FLAGS, fail
from experiments.cli.terminal import Terminal
from experiments.training.kernel_choice import choose_kernel, local_workload
from experiments.training.loop import InterruptedRunError, RunT, resume, train
from experiments.training.run_folder import Workdir, write_json
from experiments.training.single_run import NonFiniteLossError, Run, new_run
from experiments.training.tensorboard import Board, check_installed
from zaremba_jax.checkpoint import clear_after
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.encoding import Encoding, read_corpus
from zaremba_jax.data.published import PUBLISHED, load_published
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.errors import InputError

_LONGEST_NAME = 200  # of a workdir; file systems allow 255 bytes
TEXT_FILES = ("train_file", "valid_file", "test_file")
_CLUSTER = "cluster"

define_config_flags()
define_path("data_dir", None, "folder with a published corpus (default: download)")
for split in TEXT_FILES:
    define_path(
        split, None, "your own text: files or globs, comma-separated; all three are required"
    )
define_path(
    "cache_dir", None, "folder for downloaded and encoded texts (default: the user's cache)"
)
flags.DEFINE_bool(
    "resident", None, "keep the whole training text on the device (default: if it fits)"
)
define_path("workdir", None, "folder of the run (default: in runs/, by the settings)")
flags.DEFINE_integer("chunk", 20, "windows trained between checks by the host", lower_bound=1)
flags.DEFINE_float("checkpoint_minutes", 10, "save this often within an epoch", lower_bound=0)
flags.DEFINE_bool("tensorboard", False, "write curves and gates for TensorBoard")
flags.DEFINE_integer(
    "data_parallel", 1, "devices that share the streams of a model's batch", lower_bound=1
)
flags.DEFINE_string(
    "coordinator_address",
    None,
    f"HOST:PORT of process 0, for a run on several hosts; {_CLUSTER}: ask the cluster",
)
flags.DEFINE_integer("num_processes", None, "number of processes of the run", lower_bound=1)
flags.DEFINE_integer("process_id", None, "which process this is, from 0", lower_bound=0)


def initialize_distributed() -> Console:
    """Joins the run's other processes, if any; to be called before anything uses a device.

    Returns:
      The console, which is silent except on process 0.

    Raises:
      InputError: the flags do not go together.
    """
    address, numbers = FLAGS.coordinator_address, (FLAGS.num_processes, FLAGS.process_id)
    if address is None and numbers != (None, None):
        raise InputError("--num_processes, --process_id: give --coordinator_address=HOST:PORT too")
    if address == _CLUSTER:
        if numbers != (None, None):
            raise InputError(
                f"--coordinator_address={_CLUSTER}: the cluster numbers the processes; leave out"
                " --num_processes and --process_id"
            )
        try:
            jax.distributed.initialize()
        except ValueError:
            raise InputError(
                f"--coordinator_address={_CLUSTER}: no cluster known to jax started this"
                " process; give HOST:PORT, --num_processes and --process_id"
            ) from None
    elif address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"--coordinator_address={address}: must be HOST:PORT, or {_CLUSTER}")
        count, process_id = numbers
        if count is None or process_id is None or process_id >= count:
            raise InputError(
                f"--coordinator_address={address}: needs --num_processes and a lower --process_id"
            )
        _check_address(host, int(port), process_id)
        jax.distributed.initialize(address, count, process_id)
    return Terminal(quiet=address is not None and jax.process_index() > 0)


def _check_address(host: str, port: int, process_id: int) -> None:
    """Refuses an address that would crash jax, or that it would only reject after minutes.

    Raises:
      InputError: the host is unknown or, on process 0, the port is not free.
    """
    try:
        socket.getaddrinfo(host.strip("[]"), port)
        if process_id == 0:
            socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--coordinator_address={host}:{port}: {error}; give the host of process 0 and a free"
            " port on it"
        ) from None


def configure(**more: object) -> tuple[Config, Workdir]:
    """The configuration and the working directory that the flags specify.

    Args:
      more: settings of a program besides the configuration's; the default directory is
        named after them too.

    Raises:
      InputError: the flags do not go together, or the directory holds another run.
      InputError: as for `Workdir.check`.
    """
    config, changes = config_from_flags()
    config = with_text(config, changes)
    if config.corpus == "files":
        changes["corpus"] = "files"  # named by --train_file
    named = changes | more
    workdir = default_workdir(config.name, *(f"{key}={named[key]}" for key in named))
    workdir.check(config, **more)
    return config, workdir


def with_text(config: Config, changes: dict[str, int | float | str]) -> Config:
    """Checks the other flags that concern the text, and completes the configuration with them.

    Args:
      config: with the flags' settings.
      changes: those settings.

    Raises:
      InputError: the flags do not go together.
    """
    if FLAGS.tensorboard:
        check_installed()
    own_text = [FLAGS[name].value for name in TEXT_FILES]
    if any(own_text):
        if not all(own_text):
            raise InputError("--train_file, --valid_file and --test_file go together: give all")
        if changes.get("corpus", "files") != "files":
            raise InputError(
                f"--train_file: is your own text, but this run reads {config.corpus}; leave out"
                " --train_file or --corpus"
            )
        config = override(config, corpus="files")
    elif config.corpus == "files":
        raise InputError("--corpus=files: give --train_file, --valid_file and --test_file")
    if FLAGS.data_dir and config.corpus not in PUBLISHED:
        raise InputError(
            f"--data_dir={FLAGS.data_dir}: holds a published corpus, but this run reads"
            f" {config.corpus}; leave it out, or choose the corpus, as in --corpus=ptb"
        )
    return _with_own_unit(config, changes)


def _with_own_unit(config: Config, changes: dict[str, int | float | str]) -> Config:
    """The configuration with the unit of its corpus; a published one is read in one unit only.

    Raises:
      InputError: the flags request what the corpus does not have.
    """
    if config.corpus == "files":
        return config
    unit = PUBLISHED[config.corpus].unit if config.corpus in PUBLISHED else "word"
    if changes.get("unit", unit) != unit:
        raise InputError(
            f"--unit={config.unit}: {config.corpus} is read by the {unit}; leave it out"
        )
    for name in ("vocab_size", "min_count"):
        if config.corpus == "toy" and name in changes:
            raise InputError(
                f"--{name}={changes[name]}: the built-in corpus has its own vocabulary; leave it"
                " out"
            )
    return override(config, unit=unit)


def default_workdir(*parts: str) -> Workdir:
    """The folder of `--workdir`, or one under `runs/` that is named after the parts."""
    name = "-".join(parts)
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = f"{name[: _LONGEST_NAME - 17]}-{digest}"
    return Workdir(FLAGS.workdir or Path("runs") / name)


def load_corpus(config: Config) -> Corpus:
    """Reads, downloads or generates the text."""
    if config.corpus == "toy":
        return toy_corpus()
    limits = config.vocab_size, config.min_count
    if config.corpus in PUBLISHED:
        return load_published(config.corpus, FLAGS.data_dir, *limits, FLAGS.cache_dir)
    train, valid, test = (str(FLAGS[name].value) for name in TEXT_FILES)
    name = ", ".join(Path(part).name for part in train.split(","))
    return read_corpus(name, train, valid, test, Encoding(config.unit, *limits), FLAGS.cache_dir)


def with_kernel(
    config: Config, corpus: Corpus, workdir: Workdir, console: Console, members: int = 1
) -> tuple[Config, dict[str, Any]]:
    """The configuration, with the chosen kernel in place of `auto`, and how it was chosen.

    Args:
      config: as requested.
      corpus: the texts.
      workdir: where the run keeps its choice.
      console: gets a line for what was chosen or left out.
      members: models that a device trains together.
    """
    workload = local_workload(
        config,
        len(corpus.vocabulary),
        members=members,
        data_parallel=FLAGS.data_parallel,
    )
    choice = choose_kernel(workload, workdir.kernel, console)
    if config.compute.kernel == "auto":
        config = override(config, kernel=choice["kernel"])
    return config, choice


def open_run(config: Config, corpus: Corpus, workdir: Workdir, console: Console) -> Run:
    """The run of one model that the flags specify, resumed if its folder holds it.

    Raises:
      InputError: the flags do not go together, or do not fit the folder or the text.
    """
    resolved, kernel = with_kernel(config, corpus, workdir, console)
    run = new_run(resolved, corpus, FLAGS.data_parallel, FLAGS.resident)
    return begin(dataclasses.replace(run, kernel=kernel), workdir, config, console)


def begin(run: RunT, workdir: Workdir, config: Config, console: Console, **more: Any) -> RunT:
    """Resumes the run if its folder holds it; locks the folder against other processes.

    Args:
      run: before its first window, with the kernel that was chosen.
      workdir: its folder, created if it is missing.
      config: as requested.
      console: gets the messages.
      more: what the folder keeps besides the configuration.

    Raises:
      InputError: another process holds the folder, or its checkpoints are damaged or of
        another run.
    """
    workdir.hold()
    run = resume(run, workdir, console)
    clear_after(workdir.checkpoints, run.step)
    workdir.create(config, **more)
    if config.compute.kernel == "auto":
        write_json(workdir.kernel, run.kernel)
    return run


def train_or_exit(run: Run, workdir: Workdir, console: Console) -> None:
    """Trains as the flags say; ends the program on a signal or if training diverges."""
    try:
        train_or_raise(run, workdir, console)
    except NonFiniteLossError as error:
        fail(error, status=1)


def train_or_raise(run: Run, workdir: Workdir, console: Console) -> None:
    """Trains as the flags say; ends the program on a signal or if a file cannot be written.

    Raises:
      NonFiniteLossError: as for `train`.
    """
    try:
        with Board(workdir.tensorboard, run.step) if FLAGS.tensorboard else nullcontext() as board:
            train(
                run,
                workdir,
                console,
                chunk=FLAGS.chunk,
                checkpoint_minutes=FLAGS.checkpoint_minutes,
                board=board,
            )
    except OSError as error:
        fail(error, status=1)
    except InterruptedRunError as stop:
        console.print(stop, soft_wrap=True)
        sys.exit(stop.status)
