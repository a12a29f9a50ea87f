from experiments.reports.records import Record
from experiments.table1.figure import table1_figure
from zaremba_jax.config import override
from zaremba_jax.presets import MEDIUM, SMALL


def test_models_alone_are_as_in_the_table_and_averages_beside_them():
    tests = {("small", 0): 114.0, ("small", 1): 116.0, ("medium", 0): 83.0}
    records = [
        Record(
            config=override(SMALL if name == "small" else MEDIUM, seed=seed),
            summary={"seed": seed, "valid_perplexity": 1.0, "test_perplexity": test},
            history=[{"valid_perplexity_estimate": 300.0}],
        )
        for (name, seed), test in tests.items()
    ]
    averaged = [{"members": n, "test_perplexity": 111.0, "test_spread": 0.5} for n in (1, 2, 60)]
    for mixtures, small in (
        ({}, [(1, 115.0)]),
        ({"small": {"mixtures": averaged}}, [(1, 115.0), (2, 111.0), (60, 111.0)]),
    ):
        figure = table1_figure(records, mixtures)
        assert figure.axes[1].get_xlim()[1] > max(members for members, _ in small)
        drawn = {
            bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()]
            for bars in figure.axes[1].containers
        }
        assert drawn == {"small, ours": small, "medium, ours": [(1, 83.0)]}
        papers = {
            x.get_label(): x.get_marker() for x in figure.axes[1].lines if x.get_marker() == "D"
        }
        assert list(papers) == ["small, paper", "medium, paper", "large, paper"]


def test_curves_of_single_models_stand_beside_what_the_paper_reached():
    records = [
        Record(
            config=override(SMALL, seed=seed),
            summary={"seed": seed, "valid_perplexity": 1.0, "test_perplexity": 1.0},
            history=[{"valid_perplexity_estimate": x + seed} for x in (300.0, 200.0)],
        )
        for seed in (0, 1)
    ]
    curve, *levels = table1_figure(records, {}).axes[0].lines
    assert curve.get_xydata().tolist() == [[1, 300.5], [2, 200.5]]
    assert [level.get_ydata()[0] for level in levels] == [120.7, 86.2, 82.2]
