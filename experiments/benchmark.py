"""Times whole training steps against the peers: `python -m experiments.benchmark`.

Forward, backward, clip and update, dropout on, with the Penn Treebank's vocabulary; the
contenders take turns in one run.
"""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.contenders import (
    BUILDERS,
    CHECKS,
    Run,
    build_members,
    doublings,
    is_paper_model,
    sample_windows,
)
from experiments.benchmarks.step_floor import products, step_flops
from experiments.benchmarks.timing import alone, interleave, quartiles
from experiments.cli import program
from experiments.cli.config_flags import config_from_flags, define_config_flags
from experiments.cli.flag_kinds import define_path
from experiments.cli.program import FLAGS
from experiments.cli.terminal import Terminal
from experiments.reports.summary import environment
from experiments.training.kernel_choice import local_workload, why_not_pallas
from experiments.training.run_folder import write_json
from zaremba_jax.config import Config, Precision, override, to_dict
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.errors import InputError

OURS = "zaremba_jax"
PRECISIONS = get_args(Precision)
TEXT_SETTINGS = frozenset({"corpus", "unit", "vocab_size", "min_count"})
_FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
# The values of each setting in the scaling curves; all others stay as configured.
SCALES = {
    "hidden_size": (128, 256, 512, 1024),
    "batch_size": (5, 10, 20, 40, 80),
    "unroll": (5, 10, 20, 35, 70),
    "members": (1, 2, 4, 8),
}

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


class Contender(NamedTuple):
    """Who trains what, how many models, and how many at once; only ours trains several."""

    builder: str
    config: Config
    members: int = 1
    at_once: int = 1

    @property
    def name(self) -> str:
        """As in `--peers`, but always with the precision; and the members, if several."""
        name = f"{self.builder}:{self.config.compute.precision}"
        return name if self.members == 1 else f"{name} × {self.members}, {self.at_once} at once"

    def build(self, windows: int) -> Run:
        """Returns a function that trains on this many windows."""
        text = sample_windows(self.config, windows)
        if self.members > 1:
            return build_members(self.config, text, self.members, self.at_once)
        return BUILDERS[self.builder](self.config, text)


def contenders(config: Config, peers: list[str], members: int = 1) -> list[Contender]:
    """Ours first, then its ensembles if there are several members, then the peers.

    Raises:
      InputError: a peer or its precision is unknown or cannot run here, or one is named
        twice.
    """
    entrants = [Contender(OURS, config)]
    if members > 1:
        entrants += [Contender(OURS, config, members, at_once) for at_once in doublings(members)]
    for peer in peers:
        builder, _, precision = peer.partition(":")
        for value, choices in ((builder, tuple(BUILDERS)), (precision or "float32", PRECISIONS)):
            if value not in choices:
                raise InputError(f"--peers={peer}: {value!r} is not one of {', '.join(choices)}")
        if builder not in (OURS, "scan") and not is_paper_model(config):
            raise InputError(
                f"--peers={peer}: has only the paper's model, LSTMs with dropout; leave it out,"
                f" or the flags of other cells and regularizers"
            )
        peer_config = override(config, precision=precision or config.compute.precision)
        if builder in CHECKS:
            CHECKS[builder](peer_config)
        entrants.append(Contender(builder, peer_config))
    names = [contender.name for contender in entrants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--peers: {', '.join(twice)} is named twice; name each once")
    return entrants


def default_peers(config: Config) -> list[str]:
    """Those that may run here; ours, torch and pallas in the other precision too."""
    (other,) = set(PRECISIONS) - {config.compute.precision}
    if not is_paper_model(config):
        return ["scan", f"{OURS}:{other}"]
    peers = ["scan", "flax", "nnx", f"{OURS}:{other}"]
    if importlib.util.find_spec("torch") is not None:
        peers += ["torch", f"torch:{other}"]
    if jax.default_backend() == "gpu":
        peers.append("cudnn:float32")
    for precision in (config.compute.precision, other):
        workload = local_workload(override(config, precision=precision), PTB_VOCABULARY_SIZE)
        if why_not_pallas(workload) is None:
            peers.append(f"pallas:{precision}")
    return peers


def measure(entrants: list[Contender], windows: int, rounds: int) -> dict[str, Any]:
    """Times all contenders in one run.

    Returns:
      `peak_gflops`, the best rate of a matrix product by precision, and `contenders`, one
      record each with quartiles of `step_ms`, `tokens_per_second`, `ratio` (its time per
      token over the first contender's) and `of_floor` (the time of a step's products at
      the best rate, over the step's).
    """
    runs = {entrant.name: entrant.build(windows) for entrant in entrants}
    configs = {entrant.config.compute.precision: entrant.config for entrant in entrants}
    bare = {
        f"{precision} {name}": product
        for precision, config in configs.items()
        for name, product in products(config).items()
    }
    seconds = interleave(runs | {name: product.run for name, product in bare.items()}, rounds)
    rates = {name: product.flops / np.median(seconds[name]) for name, product in bare.items()}
    peak = {
        precision: float(max(rate for name, rate in rates.items() if name.startswith(precision)))
        for precision in configs
    }

    def seconds_per_token(entrant: Contender) -> np.ndarray:
        train = entrant.config.train
        tokens = windows * entrant.members * train.batch_size * train.unroll
        return seconds[entrant.name] / tokens

    def record(entrant: Contender) -> dict[str, Any]:
        step = seconds[entrant.name] / windows
        floor = entrant.members * step_flops(entrant.config)
        return {
            "contender": entrant.name,
            "members": entrant.members,
            "members_at_once": entrant.at_once,
            "step_ms": quartiles(1e3 * step),
            "tokens_per_second": quartiles(1 / seconds_per_token(entrant)),
            "ratio": quartiles(seconds_per_token(entrant) / seconds_per_token(entrants[0])),
            "of_floor": quartiles(floor / peak[entrant.config.compute.precision] / step),
        }

    return {
        "peak_gflops": {precision: rate / 1e9 for precision, rate in peak.items()},
        "contenders": [record(entrant) for entrant in entrants],
    }


def scaling(config: Config, peers: list[str], windows: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of each contender, one setting varied at a time."""

    def at(setting: str, value: int) -> dict[str, Any]:
        if setting == "members":  # only ours trains several
            entrants = [Contender(OURS, config, members=value, at_once=value)]
        else:
            entrants = contenders(override(config, **{setting: value}), peers)
        records = measure(entrants, windows, rounds)["contenders"]
        return {
            entrant._replace(members=1).name: record["tokens_per_second"]
            for entrant, record in zip(entrants, records, strict=True)
        }

    return {
        setting: {str(value): at(setting, value) for value in values}
        for setting, values in SCALES.items()
    }


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Prints one row per contender."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("contender")
    for column in ("step ms", "tokens/s", "ratio", "quartiles", "of floor", "first s", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in results["contenders"]:
        ratio, step = record["ratio"], record["step_ms"].median
        table.add_row(
            record["contender"],
            f"{step:.2f}" if step < 10 else f"{step:.1f}",
            f"{record['tokens_per_second'].median:,.0f}",
            f"{ratio.median:.2f}",
            f"{ratio.lower:.2f}-{ratio.upper:.2f}",
            f"{record['of_floor'].median:.0%}",
            f"{record['first_seconds']:.1f}",
            f"{record['peak_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    rates = ", ".join(f"{rate:,.0f} in {p}" for p, rate in results["peak_gflops"].items())
    console.print(
        f"{results['config']['name']} on {results['device']}, medians of {results['rounds']}"
        " rounds. Step: of all members. Ratio: time per token over that of our single model."
        " Of floor: the time of the step's matrix products at this run's best rate, over the"
        f" step's; best rates in GFLOP/s: {rates}. First: seconds until the first turn ends. MB:"
        " peak memory."
    )


def configure() -> Config:
    """The configuration to time; refuses what would fail only after the measurements.

    Raises:
      InputError: a flag has no meaning here, or its file cannot be written.
    """
    config, changes = config_from_flags()
    if unread := sorted(changes.keys() & TEXT_SETTINGS):
        raise InputError(
            f"--{', --'.join(unread)}: random tokens of {PTB_VOCABULARY_SIZE:,} words are timed;"
            " leave it out"
        )
    for name in ("json", "scaling"):
        path = FLAGS[name].value
        if path and (Path(path).is_dir() or not Path(path).parent.is_dir()):
            raise InputError(f"--{name}={path}: is not a file in an existing folder; name one")
    if FLAGS.scaling and importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            f"--scaling={FLAGS.scaling}: needs matplotlib;"
            " pip install 'zaremba-jax[plots]', or leave it out"
        )
    if FLAGS.scaling and Path(FLAGS.scaling).suffix not in _FIGURE_SUFFIXES:
        raise InputError(
            f"--scaling={FLAGS.scaling}: is not a picture; end its name in"
            f" {', '.join(_FIGURE_SUFFIXES)}"
        )
    return config


def main() -> None:
    """Measures what the flags request, and prints and writes the results."""
    console = Terminal()
    config = configure()
    peers = default_peers(config) if FLAGS.peers is None else FLAGS.peers
    needs = needs_of(contenders(config, peers, FLAGS.members), console)
    with console.status("all in turn"):
        results = measure(list(needs), FLAGS.windows, FLAGS.rounds)
    results["contenders"] = [
        record | need for record, need in zip(results["contenders"], needs.values(), strict=True)
    ]
    results |= {
        "config": to_dict(config),
        "windows": FLAGS.windows,
        "rounds": FLAGS.rounds,
        **_environment(),
    }
    print_results(console, results)
    write_results(results)
    if FLAGS.scaling:
        with console.status("scaling"):
            others = [entrant.name for entrant in needs if entrant.members == 1][1:]
            results["scaling"] = scaling(config, others, FLAGS.windows, FLAGS.rounds)
        write_results(results)
        from experiments.reports.figures import draw_scaling

        draw_scaling(Path(FLAGS.scaling), results)


def needs_of(entrants: list[Contender], console: Console) -> dict[Contender, dict[str, Any]]:
    """What each contender needs on its own; those that cannot run are left out unless named.

    Raises:
      InputError: ours cannot run here, or a peer that `--peers` names.
    """
    needs: dict[Contender, dict[str, Any]] = {}
    for entrant in entrants:
        with console.status(f"{entrant.name}, on its own"):
            try:
                needs[entrant] = alone(entrant.build, FLAGS.windows)._asdict()
            except ValueError as error:
                if not needs:  # all are compared to the first
                    raise InputError(f"{entrant.name}: {error}") from None
                if FLAGS.peers is not None:
                    raise InputError(f"{entrant.name}: {error}; leave it out") from None
                console.print(f"{entrant.name} is left out: {error}", soft_wrap=True)
    return needs


def write_results(results: dict[str, Any]) -> None:
    """Writes what was measured so far to the file of `--json`, if given."""
    if FLAGS.json:
        write_json(Path(FLAGS.json), results)


def _environment() -> dict[str, Any]:
    """What the figures depend on, with the version of torch if it is installed."""
    record = environment()
    if importlib.util.find_spec("torch") is not None:
        record["versions"]["torch"] = version("torch")
    return record


if __name__ == "__main__":
    program.run(main)
