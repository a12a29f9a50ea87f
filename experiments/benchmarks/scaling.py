"""Tokens per second of every contender over sizes of model and windows, and their figure."""

from collections.abc import Sequence
from typing import Any

from experiments.benchmarks.contenders import OURS, Contender, choose_contenders
from experiments.benchmarks.step_times import compare_step_times
from experiments.benchmarks.turns import Quartiles
from experiments.reports.figures import label_sizes, panels
from zaremba_jax.config import Config, override

# The values of each setting in the scaling curves; all others stay as configured.
SCALES = {
    "hidden_size": (128, 256, 512, 1024),
    "batch_size": (5, 10, 20, 40, 80),
    "unroll": (5, 10, 20, 35, 70),
    "members": (1, 2, 4, 8),
}


def scaling_curves(
    config: Config, peers: Sequence[str], windows: int, rounds: int
) -> dict[str, dict[str, dict[str, Quartiles]]]:
    """Tokens per second by setting, its value and contender, one setting varied at a time."""

    def at(setting: str, value: int) -> dict[str, Quartiles]:
        if setting == "members":  # only ours trains several
            contenders = [Contender(OURS, config, members=value, at_once=value)]
        else:
            contenders = choose_contenders(override(config, **{setting: value}), peers)
        records = compare_step_times(contenders, windows, rounds)["contenders"]
        return {
            contender._replace(members=1).name: record["tokens_per_second"]
            for contender, record in zip(contenders, records, strict=True)
        }

    return {
        setting: {str(value): at(setting, value) for value in values}
        for setting, values in SCALES.items()
    }


def scaling_figure(results: dict[str, Any]) -> Any:
    """Tokens per second over each setting that a benchmark varied, one panel per setting."""
    scaling = results["scaling"]
    figure, of_settings = panels(3.2 * len(scaling), 3.6, columns=len(scaling), sharey=True)
    for panel, (setting, points) in zip(of_settings, scaling.items(), strict=True):
        sizes = [int(size) for size in points]
        for name in next(iter(points.values())):
            lower, median, upper = zip(*(point[name] for point in points.values()), strict=True)
            panel.plot(sizes, median, marker=".", label=name)
            panel.fill_between(sizes, lower, upper, alpha=0.2, linewidth=0)
        panel.set(yscale="log", xlabel=setting.replace("_", " "))
        label_sizes(panel, sizes)
    of_settings[0].set_ylabel("tokens per second")
    of_settings[0].legend(fontsize="small")
    figure.suptitle(
        f"training {results['config']['name']} with one setting varied, {results['device']}"
    )
    return figure
