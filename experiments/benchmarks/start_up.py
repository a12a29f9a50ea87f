"""The start of a run: from its command to the end of its first window, in a process of its own."""

import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

from rich.console import Console

from experiments.cli.program_names import PACKAGE
from zaremba_jax.config import Config, to_dict
from zaremba_jax.errors import InputError


class StartUp(NamedTuple):
    """The seconds that each part of a run's start takes, without reading its text."""

    imports: float  # with the start of Python
    initial_state: float  # with the start of jax on its device
    compilation: float
    first_window: float


def start_up(config: Config) -> StartUp:
    """Does what `experiments.ptb` does up to its first window, but for text, flags and folder.

    Raises:
      InputError: the process failed, and has said why, or was killed.
    """
    module = f"{sys.modules[PACKAGE].__name__}.benchmarks.start_up"
    command = [sys.executable, "-P", "-m", module, str(time.time()), json.dumps(to_dict(config))]
    alike = {
        "PYTHONPATH": os.pathsep.join(sys.path),  # it imports what this process would
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # this process has compiled the same
    }
    environment = os.environ | alike
    completed = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True)
    if completed.returncode:
        raise InputError(f"the start of a run: its process ended with {completed.returncode}")
    return StartUp(*json.loads(completed.stdout))


def print_start_up(console: Console, results: dict[str, Any]) -> None:
    """Prints a line with the sum and its parts."""
    parts = results["start_up"]
    told = ", ".join(f"{name.replace('_', ' ')} {x:.1f}" for name, x in parts.items())
    console.print(f"Start of a run, seconds: {sum(parts.values()):.1f} ({told}).")


def main() -> None:
    """Prints the seconds of each part; its arguments are the time of its start and what is run."""
    times = [float(sys.argv[1])]
    importlib.import_module("experiments.ptb")
    times.append(time.time())

    import jax

    from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
    from zaremba_jax.presets import from_dict
    from zaremba_jax.train import init_train_state, train_windows

    config = from_dict(json.loads(sys.argv[2]))
    state = jax.block_until_ready(init_train_state(config, PTB_VOCABULARY_SIZE))
    times.append(time.time())
    shape = (1, config.train.unroll + 1, config.train.batch_size)
    windows = jax.numpy.zeros(shape, jax.numpy.int32)
    program = train_windows.lower(config, state, windows).compile()
    times.append(time.time())
    jax.block_until_ready(program(state, windows))
    times.append(time.time())
    print(json.dumps([end - begin for begin, end in itertools.pairwise(times)]))


if __name__ == "__main__":
    main()
