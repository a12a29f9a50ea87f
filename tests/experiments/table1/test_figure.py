from experiments.reports.records import Record
from experiments.table1.figure import table1_figure
from zaremba_jax.config import override
from zaremba_jax.presets import MEDIUM, SMALL


def test_table_shows_a_model_alone_where_none_are_averaged():
    tests = {("small", 0): 114.0, ("small", 1): 116.0, ("medium", 0): 83.0}
    records = [
        Record(
            config=override(SMALL if name == "small" else MEDIUM, seed=seed),
            summary={"seed": seed, "valid_perplexity": 1.0, "test_perplexity": test},
            history=[{"valid_perplexity_estimate": 300.0}],
        )
        for (name, seed), test in tests.items()
    ]
    averaged = [{"members": n, "test_perplexity": 115.0 - n, "test_spread": 0.5} for n in (1, 2)]
    for mixtures, small in (
        ({}, [(1, 115.0)]),
        ({"small": {"mixtures": averaged}}, [(1, 114.0), (2, 113.0)]),
    ):
        figure = table1_figure(records, mixtures)
        drawn = {
            bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()]
            for bars in figure.axes[1].containers
        }
        assert drawn == {"small, ours": small, "medium, ours": [(1, 83.0)]}
        papers = {
            x.get_label(): x.get_marker() for x in figure.axes[1].lines if x.get_marker() == "D"
        }
        assert list(papers) == ["small, paper", "medium, paper", "large, paper"]
