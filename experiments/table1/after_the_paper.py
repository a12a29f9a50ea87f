"""What later models of about these sizes reached on the Penn Treebank, beside the preset `awd`."""

import re
import statistics
from typing import NamedTuple

from experiments.reports.records import Record, by_seed, records_of
from experiments.reports.statistics import format_mean
from zaremba_jax.presets import AWD, PAPER_PERPLEXITIES

LEGEND = """\
One model each, but for the paper's average of 38. Published figures are their authors'. Ours are
runs of the preset `awd`, in the protocol of the first table, with settings changed as their records
say."""
TITLES = ["model", "parameters", "validation", "test", "source"]


class Published(NamedTuple):
    """A published model: millions of parameters, validation and test perplexity."""

    model: str
    millions: int
    valid: float | None
    test: float
    source: str


_PAPER = "Zaremba et al. 2014"
PUBLISHED = (
    Published("large", 66, *PAPER_PERPLEXITIES["large"][1], _PAPER),
    Published("38 large, averaged", 38 * 66, *PAPER_PERPLEXITIES["large"][38], _PAPER),
    Published("variational large", 66, 77.9, 75.2, "Gal & Ghahramani 2016"),
    Published("medium, tied (example word_lm)", 13, None, 75.4, "MXNet"),
    Published("large, tied", 51, 77.7, 74.3, "Press & Wolf 2017"),
    Published("variational medium, tied, augmented loss", 24, 75.7, 73.2, "Inan et al. 2017"),
    Published("variational large, tied, augmented loss", 51, 71.1, 68.5, "Inan et al. 2017"),
    Published("tuned LSTM of one layer", 10, 61.8, 59.6, "Melis et al. 2018"),
    Published("tuned LSTM of four layers", 24, 60.9, 58.3, "Melis et al. 2018"),
    Published("AWD-LSTM", 24, 60.0, 57.3, "Merity et al. 2018"),
)


def after_the_paper(records: list[Record]) -> list[list[str]]:
    """Table cells: what is published and the runs of `awd`, by falling test perplexity."""
    rows = [(p.test, _cells(p)) for p in PUBLISHED]
    models = dict.fromkeys(r.model for r in records if r.model.name == AWD.name and r.perplexities)
    for model in models:
        runs = records_of(model, records)
        valid, test = zip(*by_seed(runs).values(), strict=True)
        # Ensembles of earlier versions lack it.
        sizes = [run.summary["parameters"] for run in runs if "parameters" in run.summary]
        size = f"{sizes[0] / 1e6:.1f} M" if sizes else ""
        seeds = f", {len(test)} seeds" if len(test) > 1 else ""
        name = re.sub(r"-seeds?\d+(-\d+)?$", "", runs[0].name)
        cells = [name, size, format_mean(valid), format_mean(test), f"here{seeds}"]
        rows.append((statistics.mean(test), cells))
    return [cells for _, cells in sorted(rows, key=lambda row: -row[0])]


def _cells(published: Published) -> list[str]:
    model, millions, valid, test, source = published
    return [
        model,
        f"{millions:,} M",
        "" if valid is None else f"{valid:.1f}",
        f"{test:.1f}",
        source,
    ]
