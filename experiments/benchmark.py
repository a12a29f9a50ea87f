"""Times training, evaluation and a run's start beside the peers: `python -m experiments.benchmark`.

Training steps are whole: forward, backward, clip and update, dropout on, with the Penn Treebank's
vocabulary; the contenders take turns in one run. Evaluation is that of one stream.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags
from absl.flags import FLAGS
from rich.console import Console

from experiments.benchmarks.contenders import (
    BUILDERS,
    Contender,
    choose_contenders,
    default_peers,
)
from experiments.benchmarks.evaluation import compare_evaluation, print_evaluation
from experiments.benchmarks.own_process import Needs, needs_of_all
from experiments.benchmarks.scaling import refuse_scales, scaling_curves, scaling_figure
from experiments.benchmarks.start_up import print_start_up, start_up
from experiments.benchmarks.step_times import compare_step_times, print_step_times
from experiments.cli import program
from experiments.cli.config_flags import config_from_flags, define_config_flags
from experiments.cli.flag_kinds import define_path
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.terminal import Terminal
from experiments.reports.figures import can_draw, is_picture, write_picture
from experiments.training.environment import environment, is_installed
from experiments.training.written_files import write_json
from zaremba_jax.config import Config, to_dict
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError

REFUSED = ("corpus", "unit", "vocab_size", "min_count")
_FIGURE_SUFFIXES = (".png", ".svg", ".pdf")

define_config_flags()
flags.DEFINE_list(
    "peers",
    None,
    f"contenders beside ours, out of {', '.join(BUILDERS)}; append :float32 or :bfloat16 to one"
    " to override --precision (default: those that can run here)",
)
flags.DEFINE_integer(
    "members", 1, "also time ensembles of this many, 1, 2, 4, … members at once", lower_bound=1
)
flags.DEFINE_integer("windows", 4, "training steps per turn", lower_bound=1)
flags.DEFINE_integer("rounds", 15, "turns of each contender", lower_bound=2)
define_path("json", None, "file for the results")
define_path("scaling", None, "also measure tokens per second over sizes; file for the plot")


def main() -> None:
    """Measures what the flags request, and prints and writes the results."""
    console, config = Terminal(), configure()
    peers = default_peers(config) if FLAGS.peers is None else FLAGS.peers
    contenders = choose_contenders(config, peers, FLAGS.members)
    needs = needs_of_all(contenders, FLAGS.windows, console, leave_out=FLAGS.peers is None)
    # Before this process fills the device's memory.
    with console.status("start of a run"):
        start = start_up(config)
    results = time_steps(config, needs, console) | {"start_up": start._asdict()}
    print_step_times(console, results)
    write_results(results)
    with console.status("evaluation"):
        results["evaluation_us"] = compare_evaluation(list(needs), FLAGS.rounds)
    print_evaluation(console, results)
    print_start_up(console, results)
    write_results(results)
    if FLAGS.scaling:
        others = [contender.name for contender in needs if contender.members == 1][1:]
        with console.status("scaling"):
            results["scaling"] = scaling_curves(
                config,
                others,
                FLAGS.windows,
                FLAGS.rounds,
                keep=lambda curves: write_results(results | {"scaling": curves}),
            )
        write_picture(console, _in_its_folder(FLAGS.scaling), scaling_figure, results)


def time_steps(
    config: Config, needs: Mapping[Contender, Needs], console: Console
) -> dict[str, Any]:
    """Whole steps of all contenders in turn, with what each needs, and what was measured where."""
    with console.status("all in turn"):
        results = compare_step_times(list(needs), FLAGS.windows, FLAGS.rounds)
    for record, need in zip(results["contenders"], needs.values(), strict=True):
        record |= need._asdict()
    results |= {"config": to_dict(config), "windows": FLAGS.windows, "rounds": FLAGS.rounds}
    results |= environment()
    if is_installed("torch"):
        results["versions"]["torch"] = version("torch")
    return results


def configure() -> Config:
    """The configuration to time; refuses what would fail only after the measurements."""
    config, changes = config_from_flags()
    if unread := sorted(changes.keys() & set(REFUSED)):
        raise InputError(
            f"--{', --'.join(unread)}: random tokens of {PTB_VOCABULARY_SIZE:,} words are timed;"
            " leave it out"
        )
    for name, is_own in (("json", is_results), ("scaling", is_picture)):
        path = FLAGS[name].value
        if path:
            refuse_to_replace(name, Path(path), "of an earlier benchmark", is_own)
    if FLAGS.scaling:
        _refuse_scaling(FLAGS.scaling, config)
    return config


def _refuse_scaling(path: str, config: Config) -> None:
    """Refuses a path of `--scaling` or sizes of which no picture can come."""
    if not can_draw():
        raise InputError(
            f"--scaling={path}: needs matplotlib; pip install 'zaremba-jax[plots]', or leave it out"
        )
    if Path(path).suffix not in _FIGURE_SUFFIXES:
        raise InputError(
            f"--scaling={path}: is not a picture; end its name in {', '.join(_FIGURE_SUFFIXES)}"
        )
    try:
        refuse_scales(config)
    except InputError as error:
        raise InputError(f"--scaling={path}: varies one size at a time, but {error}") from None


def is_results(path: Path) -> bool:
    """Whether `write_results` wrote a file."""
    return b'"contenders"' in path.read_bytes()


def write_results(results: dict[str, Any]) -> None:
    """Writes what was measured so far to the file of `--json`, if given."""
    if FLAGS.json:
        write_json(_in_its_folder(FLAGS.json), results)


def _in_its_folder(name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    program.run(main)
