"""The picture of the paper's table 1 beside ours, made from records only."""

import statistics
from typing import Any

import numpy as np

from experiments.reports.figures import (
    OF_PAPER,
    draw_range,
    label_epochs,
    label_logarithmic,
    label_values,
    legend_outside,
    line_styles,
    panels,
)
from experiments.reports.records import Record, by_seed, model_name, records_of
from experiments.reports.run_figures import draw_paper, draw_sizes
from experiments.reports.statistics import deviation
from zaremba_jax.config import override
from zaremba_jax.presets import PAPER_PERPLEXITIES, PRESETS


def table1_figure(records: list[Record], mixtures: dict[str, dict[str, Any]]) -> Any:
    """Validation perplexity over epochs, and test perplexity over the models averaged.

    A colour is a preset. What is ours has filled marks, dashed in bfloat16; what is the paper's is
    dotted, with white diamonds.
    """
    figure, (left, right) = panels(11, 5.2, columns=2)
    styles = line_styles(len(PAPER_PERPLEXITIES))
    for (preset, paper), style in zip(PAPER_PERPLEXITIES.items(), styles, strict=True):
        color = style["color"]
        for precision, line in (("bfloat16", "--"), ("float32", "-")):
            model = override(PRESETS[preset], precision=precision)
            of_model = records_of(model, records)
            _draw_model(left, right, of_model, mixtures, color=color, linestyle=line)
        valid, test = ({size: pair[split] for size, pair in paper.items()} for split in (0, 1))
        left.axhline(valid[1], color=color, linestyle=OF_PAPER["linestyle"])
        draw_paper(right, test, f"{preset}, paper", color)
    left.set(
        ylabel="validation perplexity", title="one model: mean and range over seeds (estimate)"
    )
    right.set(
        xlabel="models averaged",
        ylabel="test perplexity",
        title="averages: mean ± standard deviation over seeds or sets",
    )
    label_epochs(left)
    sizes = {size for paper in PAPER_PERPLEXITIES.values() for size in paper}
    sizes |= {size["members"] for record in mixtures.values() for size in record["mixtures"]}
    label_values(right, sorted(sizes), logarithmic=True)
    for axes in (left, right):
        label_logarithmic(axes)
    figure.suptitle("Penn Treebank: ours (filled) and the paper's (white diamonds, dotted)")
    legend_outside(figure, "lower center", ncols=len(PAPER_PERPLEXITIES) + 1)
    return figure


def _draw_model(
    curves: Any,
    averages: Any,
    records: list[Record],
    mixtures: dict[str, dict[str, Any]],
    **style: Any,
) -> None:
    """What a model adds to both panels: its curves, its figures alone, and its averages."""
    if not records:
        return
    model, tests = records[0].model, [test for _, test in by_seed(records).values()]
    validated = np.array([curve for record in records for curve in record.curves])
    if validated.size:
        draw_range(curves, range(1, validated.shape[1] + 1), validated, **style)
    averaged = mixtures.get(model_name(model), {"mixtures": []})["mixtures"]
    measured = [mixture for mixture in averaged if mixture["members"] > 1]
    if tests:  # alone as in the table: of all that have records
        figures = {"test_perplexity": statistics.mean(tests), "test_spread": deviation(tests)}
        measured = [{"members": 1, **figures}, *measured]
    if measured:
        label = model.name + " in bfloat16" * (model.compute.precision == "bfloat16")
        draw_sizes(averages, measured, "test", f"{label}, ours", marker="o", markersize=4, **style)
