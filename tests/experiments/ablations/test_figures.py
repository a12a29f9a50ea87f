import json
import statistics
from pathlib import Path

import pytest

from experiments.ablations.figures import (
    final_perplexities_figure,
    language_modelling_figure,
    memory_figure,
)

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


@pytest.mark.parametrize("cells", [["lstm"], ["lstm", "gru", "tanh"]])
def test_title_is_within_the_figure(results, cells):
    language = {cell: results["language_modelling"][cell] for cell in cells}
    figure = final_perplexities_figure(results | {"language_modelling": language})
    figure.draw_without_rendering()
    (title,) = figure.texts
    extent = title.get_window_extent()
    assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1
    assert len(title.get_text().splitlines()) == (2 if len(cells) == 1 else 1)


def test_one_seed_has_no_deviation_and_no_range(results):
    for seeds in (1, 3):
        (title,) = final_perplexities_figure(results | {"seeds": seeds}).texts
        assert ("±" in title.get_text()) == (seeds > 1)
        label = language_modelling_figure(results | {"seeds": seeds}).axes[0].get_ylabel()
        assert ("range over seeds" in label) == (seeds > 1)


def test_memories_that_lie_on_each_other_are_all_seen(results):
    for panel in memory_figure(results).axes:
        *methods, _ = panel.get_lines()
        widths = [line.get_linewidth() for line in methods]
        sizes = [line.get_markersize() for line in methods]
        assert widths == sorted(set(widths), reverse=True)
        assert sizes == sorted(set(sizes))
        assert {line.get_markerfacecolor() for line in methods} == {"none"}


def test_methods_are_told_apart_without_colour(results):
    lines = language_modelling_figure(results).axes[0].get_lines()
    looks = {(line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == len(results["titles"])
