import struct

import pytest

from experiments.reports import figures
from experiments.reports.figures import draw_curves, draw_scaling, draw_table1
from experiments.reports.records import Record
from zaremba_jax.config import MEDIUM, SMALL, override

HISTORY = [
    {
        "epoch": epoch,
        "learning_rate": 1.0 if epoch < 3 else 0.5,
        "train_perplexity": 400 / epoch,
        "valid_perplexity_estimate": 300 / epoch,
    }
    for epoch in (1, 2, 3, 4)
]
SUMMARY = {
    "name": "small",
    "corpus": "Penn Treebank",
    "config": {"name": "small", "dropout": 0.5},
    "test_perplexity": 80.04,
    "paper_test_perplexity": None,
    "floor_perplexity": None,
}
CURVES = ["training, regularizers on", "validation (estimate)", "test, final: 80.0"]


@pytest.fixture
def closed(monkeypatch):
    """The figures that were closed, kept open for inspection."""
    figures_closed = []
    close = figures.plt.close
    monkeypatch.setattr(figures.plt, "close", figures_closed.append)
    yield figures_closed
    for figure in figures_closed:
        close(figure)


@pytest.fixture
def drawn(tmp_path, closed):
    """A function that draws a run and returns the file and the figure."""

    def draw(history, **summary):
        draw_curves(tmp_path / "curves.png", history, SUMMARY | summary)
        return tmp_path / "curves.png", closed[-1]

    return draw


def test_title_is_no_mathematics_whatever_a_text_is_called(drawn):
    _, figure = drawn(HISTORY, corpus="from_$5_to_$9, caf\udce9")
    assert figure.axes[0].get_title() == r"from_\$5_to_\$9, caf?, small"


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize(
    ("changes", "label"),
    [({}, "training"), ({"hidden_dropout": 0.5}, "training, regularizers on")],
)
def test_legend_claims_no_regularizers_where_there_are_none(drawn, changes, label):
    _, figure = drawn(HISTORY, config={"name": "small", "dropout": 0.0, **changes})
    assert legend(figure)[0] == label


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize(
    "levels",
    [{}, {"paper_test_perplexity": 114.5}, {"floor_perplexity": 31.25}],
    ids=["neither", "paper", "floor"],
)
def test_figure_is_a_png_of_a_sensible_size(drawn, epochs, levels):
    path, _ = drawn(HISTORY[:epochs], **levels)
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", head[16:])
    assert 600 < height < width < 2000


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ({}, []),
        ({"paper_test_perplexity": 114.5}, ["test, paper: 114.5"]),
        ({"floor_perplexity": 31.25}, ["floor of the source: 31.2"]),
    ],
    ids=["neither", "paper", "floor"],
)
def test_legend_names_what_the_summary_has(drawn, levels, names):
    _, figure = drawn(HISTORY, **levels)
    assert legend(figure) == CURVES + names


def test_curves_go_through_the_history_s_figures(drawn):
    _, figure = drawn(HISTORY)
    train, valid, test = figure.axes[0].get_lines()
    (rate,) = figure.axes[1].get_lines()
    for line, name in (
        (train, "train_perplexity"),
        (valid, "valid_perplexity_estimate"),
        (rate, "learning_rate"),
    ):
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert list(line.get_ydata()) == [metrics[name] for metrics in HISTORY]
    assert set(test.get_ydata()) == {80.04}


def test_axes_say_what_they_show(drawn):
    _, figure = drawn(HISTORY)
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("perplexity", "learning rate")
    assert lower.get_xlabel() == "epoch"
    assert upper.get_title() == "Penn Treebank, small"


def test_no_figure_is_left_open(tmp_path):
    draw_curves(tmp_path / "curves.png", HISTORY, SUMMARY)
    assert figures.plt.get_fignums() == []


def test_scaling_has_a_panel_a_setting_and_a_line_a_contender(tmp_path, closed):
    points = {str(x): {name: [x - 1, x, x + 1] for name in ("ours", "theirs")} for x in (2, 4, 8)}
    results = {
        "scaling": {"hidden_size": points, "members": points},
        "config": {"name": "small"},
        "device": "CPU",
    }
    draw_scaling(tmp_path / "scaling.png", results)
    panels = closed[0].axes
    assert [panel.get_xlabel() for panel in panels] == ["hidden size", "members"]
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == ["ours", "theirs"]
        assert [list(line.get_ydata()) for line in panel.lines] == [[2, 4, 8]] * 2
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_table_shows_a_model_alone_where_none_are_averaged(tmp_path, closed):
    tests = {("small", 0): 114.0, ("small", 1): 116.0, ("medium", 0): 83.0}
    records = [
        Record(
            config=override(SMALL if name == "small" else MEDIUM, seed=seed),
            summary={"seed": seed, "valid_perplexity": 1.0, "test_perplexity": test},
            history=HISTORY,
        )
        for (name, seed), test in tests.items()
    ]
    averaged = [{"members": n, "test_perplexity": 115.0 - n, "test_spread": 0.5} for n in (1, 2)]
    for mixtures, small in (
        ({}, [(1, 115.0)]),
        ({"small": {"mixtures": averaged}}, [(1, 114.0), (2, 113.0)]),
    ):
        draw_table1(tmp_path / "table1.png", records, mixtures)
        drawn = {
            bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()]
            for bars in closed[-1].axes[1].containers
        }
        assert drawn == {"small": small, "medium": [(1, 83.0)]}
