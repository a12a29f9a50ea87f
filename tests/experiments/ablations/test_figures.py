import json
import statistics
from pathlib import Path

import pytest

from experiments.ablations.figures import final_perplexities_figure, language_modelling_figure

RECORD = Path(__file__).parents[3] / "experiments" / "results" / "ablation" / "results.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(RECORD.read_text())


def test_bars_end_at_the_mean_of_the_seeds_and_begin_at_the_floor(results):
    panels = final_perplexities_figure(results).axes
    for panel, methods in zip(panels, results["language_modelling"].values(), strict=True):
        for bar, record in zip(panel.patches, methods.values(), strict=True):
            assert bar.get_x() == results["floor_perplexity"]
            assert bar.get_x() + bar.get_width() == pytest.approx(statistics.mean(record["test"]))


def test_method_that_diverged_has_no_bar_and_says_so(results):
    lost = {"chosen": None, "test": [], "curves": []}
    cells = {"lstm": results["language_modelling"]["lstm"] | {"l2": lost}}
    (panel,) = final_perplexities_figure(results | {"language_modelling": cells}).axes
    assert len(panel.patches) == len(cells["lstm"]) - 1
    assert " not finite" in [text.get_text() for text in panel.texts]


def test_methods_are_told_apart_without_colour(results):
    lines = language_modelling_figure(results).axes[0].get_lines()
    looks = {(line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(results["titles"])
