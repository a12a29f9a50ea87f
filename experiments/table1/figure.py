"""The table as a picture: learning curves, and perplexity over the models averaged."""

from typing import Any

import numpy as np

from experiments.reports.figures import draw_sizes
from experiments.reports.pictures import (
    draw_range,
    label_epochs,
    label_perplexities,
    label_sizes,
    panels,
)
from experiments.reports.records import Record, by_seed, model_name
from experiments.reports.statistics import deviation, mean
from zaremba_jax.config import PAPER_PERPLEXITIES, PRESETS, override


def table1_figure(records: list[Record], mixtures: dict[str, dict[str, Any]]) -> Any:
    """Validation perplexity over epochs, and test perplexity over the models averaged."""
    figure, (left, right) = panels(11, 4.6, columns=2)
    for precision, line in (("bfloat16", "--"), ("float32", "-")):
        for number, preset in enumerate(PAPER_PERPLEXITIES):
            model = override(PRESETS[preset], precision=precision)
            of_model = [record for record in records if record.model == model]
            style = {"color": f"C{number}", "linestyle": line}
            _draw_model(left, right, model_name(model), of_model, mixtures, style)
    for number, (name, paper) in enumerate(PAPER_PERPLEXITIES.items()):
        tests = [test for _, test in paper.values()]
        right.plot(list(paper), tests, "x", color=f"C{number}", label=f"{name}, paper")
    left.set(ylabel="validation perplexity (estimate)", title="mean and range over seeds")
    label_perplexities(left)
    label_epochs(left)
    right.set(
        xlabel="models averaged",
        ylabel="test perplexity",
        title="mean ± standard deviation over seeds or sets",
    )
    label_sizes(right, sorted({size for paper in PAPER_PERPLEXITIES.values() for size in paper}))
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle("Penn Treebank")
    return figure


def _draw_model(
    curves: Any,
    averages: Any,
    name: str,
    records: list[Record],
    mixtures: dict[str, dict[str, Any]],
    style: dict[str, str],
) -> None:
    """What a model adds to both panels; alone where its records have no averages."""
    validated = np.array([curve for record in records for curve in record.curves])
    if validated.size:
        epochs = range(1, validated.shape[1] + 1)
        label = f"{name}, {len(validated)} seed{'s' * (len(validated) > 1)}"
        draw_range(curves, epochs, validated, **style, label=label)
    tests = [test for _, test in by_seed(records).values()]
    if name in mixtures:
        draw_sizes(averages, mixtures[name]["mixtures"], "test", name, **style)
    elif tests:
        single = {"members": 1, "test_perplexity": mean(tests), "test_spread": deviation(tests)}
        draw_sizes(averages, [single], "test", name, **style)
