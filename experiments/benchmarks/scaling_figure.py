"""The figure of what a benchmark measured with one setting varied at a time."""

from typing import Any

from experiments.reports.pictures import label_sizes, panels


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
