import pytest

from experiments.benchmarks import scaling
from experiments.benchmarks.scaling import scaling_figure
from experiments.benchmarks.step_times import Quartiles
from zaremba_jax.errors import InputError
from zaremba_jax.presets import QUICK


def test_scaling_is_relative_to_ours_and_of_members_to_one_model():
    points = {str(x): {"ours": [x, 2 * x, 3 * x], "theirs": [x, x, x]} for x in (2000, 4000, 8000)}
    alone = {size: {"ours": point["ours"]} for size, point in points.items()}
    results = {
        "scaling": {"hidden_size": points, "members": alone},
        "config": {"name": "small"},
        "device": "CPU",
    }
    panels = scaling_figure(results).axes
    assert [panel.get_xlabel() for panel in panels] == ["hidden size", "members"]
    drawn = [{x.get_label(): list(x.get_ydata()) for x in panel.lines} for panel in panels]
    assert drawn == [{"ours": [1, 1, 1], "theirs": [0.5] * 3}, {"ours": [1, 2, 4]}]
    assert panels[0].get_xticklabels()[0].get_text() == "2000\n4.0"


def test_title_and_legend_of_a_single_panel_are_within_the_figure():
    names = ("zaremba_jax:float32", "torch-compile:bfloat16", "flax:float32")
    point = {name: [1, 2, 3] for name in names}
    results = {
        "scaling": {"hidden_size": {"128": point, "256": point}},
        "config": {"name": "small"},
        "device": "CPU, 2 cores",
    }
    figure = scaling_figure(results)
    figure.draw_without_rendering()
    for drawn in (*figure.texts, *figure.legends):
        extent = drawn.get_window_extent()
        assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1


def test_points_are_kept_though_a_later_one_fails(monkeypatch):
    def compare(contenders, *_):
        if contenders[0].members == 8:
            raise InputError("no room")
        return {"contenders": [{"tokens_per_second": Quartiles(1, 2, 3)} for _ in contenders]}

    monkeypatch.setattr(scaling, "compare_step_times", compare)
    kept = []
    with pytest.raises(InputError, match="no room"):
        scaling.scaling_curves(QUICK, [], 1, 2, lambda curves: kept.append(len(curves)))
    assert max(kept) == len(scaling.SCALES)
