"""Figures of runs and of benchmarks. Drawn with matplotlib, which the extra `plots` brings."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, NullLocator


def draw_curves(path: Path, history: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Perplexity and learning rate over epochs, with the levels they are to be read against."""
    epochs = [metrics["epoch"] for metrics in history]
    figure, (upper, lower) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 6), height_ratios=(4, 1), layout="constrained"
    )
    dropout = summary["config"]["dropout"]
    for name, label in (
        ("train_perplexity", "training, dropout on" if dropout else "training"),
        ("valid_perplexity_estimate", "validation"),
    ):
        upper.plot(epochs, [metrics[name] for metrics in history], marker=".", label=label)
    for name, label, style in (
        ("test_perplexity", "test, final", "-"),
        ("paper_test_perplexity", "test, the paper's", "--"),
        ("floor_perplexity", "floor of the source", ":"),
    ):
        if summary[name] is not None:
            upper.axhline(
                summary[name], color="black", linestyle=style, label=f"{label}: {summary[name]:.1f}"
            )
    upper.set(yscale="log", ylabel="perplexity", title=f"{summary['corpus']}, {summary['name']}")
    upper.yaxis.set_major_formatter("{x:g}")
    upper.yaxis.set_minor_formatter("{x:g}")
    upper.legend()
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.step(epochs, [metrics["learning_rate"] for metrics in history], where="mid")
    lower.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_scaling(path: Path, results: dict[str, Any]) -> None:
    """Tokens a second over each setting that a benchmark varied, a panel each."""
    scaling = results["scaling"]
    figure, panels = plt.subplots(
        1, len(scaling), sharey=True, figsize=(3.2 * len(scaling), 3.6), layout="constrained"
    )
    for panel, (setting, points) in zip(panels, scaling.items(), strict=True):
        sizes = [int(size) for size in points]
        for name in next(iter(points.values())):
            lower, median, upper = zip(*(point[name] for point in points.values()), strict=True)
            panel.plot(sizes, median, marker=".", label=name)
            panel.fill_between(sizes, lower, upper, alpha=0.2, linewidth=0)
        panel.set(xscale="log", yscale="log", xlabel=setting.replace("_", " "))
        panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        panel.xaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("tokens a second")
    panels[0].legend(fontsize="small")
    figure.suptitle(
        f"training, {results['config']['name']} but for one setting, {results['device']}"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
