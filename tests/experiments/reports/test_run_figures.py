import struct

import pytest
from matplotlib import pyplot
from rich.console import Console

from experiments.reports.figures import as_svg, write_picture
from experiments.reports.run_figures import curves_figure, sweep_figure

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
    "valid_perplexity": 82.5,
    "test_perplexity": 80.04,
    "paper_test_perplexity": None,
    "floor_perplexity": None,
}
CURVES = ["training, regularizers on", "validation (estimate)", "best estimate: 75.0, epoch 4"]
CURVES += ["test, final: 80.0"]


def figure_of(history, **summary):
    return curves_figure(history, SUMMARY | summary)


def test_title_is_no_mathematics_whatever_a_text_is_called():
    figure = figure_of(HISTORY, corpus="from_$5_to_$9, caf\udce9")
    assert figure.axes[0].get_title().startswith(r"from_\$5_to_\$9, caf?, small")


def test_letters_that_no_font_has_are_drawn_without_a_warning(tmp_path):
    write_picture(Console(), tmp_path / "curves.png", figure_of, HISTORY, corpus="小说.txt")
    assert "<svg" in as_svg(figure_of(HISTORY, corpus="小说.txt"))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("changes", "label"),
    [({}, "training"), ({"hidden_dropout": 0.5}, "training, regularizers on")],
)
def test_legend_claims_no_regularizers_where_there_are_none(changes, label):
    figure = figure_of(HISTORY, config={"name": "small", "dropout": 0.0, **changes})
    assert legend(figure)[0] == label


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize(
    "levels",
    [{}, {"paper_test_perplexity": 114.5}, {"floor_perplexity": 31.25}],
    ids=["neither", "paper", "floor"],
)
def test_picture_is_a_png_of_a_sensible_size(tmp_path, epochs, levels):
    path = tmp_path / "curves.png"
    write_picture(Console(), path, figure_of, HISTORY[:epochs], **levels)
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
def test_legend_names_what_the_summary_has(levels, names):
    figure = figure_of(HISTORY, **levels)
    assert legend(figure) == CURVES + names


def test_curves_go_through_the_history_s_figures():
    figure = figure_of(HISTORY)
    train, valid, best, test = figure.axes[0].get_lines()
    rate, _ = figure.axes[1].get_lines()
    assert best.get_xydata().tolist() == [[4, 75.0]]
    for line, name in (
        (train, "train_perplexity"),
        (valid, "valid_perplexity_estimate"),
        (rate, "learning_rate"),
    ):
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert list(line.get_ydata()) == [metrics[name] for metrics in HISTORY]
    assert set(test.get_ydata()) == {80.04}


def test_axes_say_what_they_show():
    figure = figure_of(HISTORY)
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("perplexity", "learning rate")
    assert lower.get_xlabel() == "epoch"
    final = "final: 82.50 on validation and 80.04 on test"
    assert upper.get_title() == f"Penn Treebank, small\n{final}"
    assert lower.get_yscale() == "log"  # on which every decay is seen


def test_no_figure_is_left_open(tmp_path):
    write_picture(Console(), tmp_path / "curves.png", curves_figure, HISTORY, SUMMARY)
    assert pyplot.get_fignums() == []


def sweep_of(values, best):
    members = {value: [60 + value, 62 + value] for value in values}
    lines = [
        {"setting": {"l2": value}, "members": [{"valid_perplexity": p} for p in members[value]]}
        for value in values
    ]
    return {"corpus": "toy", "name": "quick", "settings": lines, "best": {"l2": best}}


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.5], "linear"), ([0.5, 0, 0.1], "linear"), ([1e-4, 1e-3, 0.01], "log")],
)
def test_sweep_places_values_where_they_are_and_marks_the_best(values, scale):
    (axes,) = sweep_figure(sweep_of(values, values[0])).axes
    line, best = axes.get_lines()
    assert list(line.get_xdata()) == sorted(values)
    assert axes.get_xscale() == scale
    assert best.get_xydata().tolist() == [[values[0], 61 + values[0]]]


def test_one_bad_setting_does_not_flatten_a_sweep():
    for bad, top in ((70, None), (1e9, 2 * 61.5)):
        sweep = sweep_of([0.5, 1.0, 8.0], 0.5)
        sweep["settings"][2]["members"] = [{"valid_perplexity": bad}] * 2
        (axes,) = sweep_figure(sweep).axes
        lowest, highest = axes.get_ylim()
        assert lowest < 61.5
        assert (highest == top) if top else (bad < highest < 2 * bad)
        assert ("twice" in axes.get_ylabel()) == (top is not None)


def test_sweep_of_zero_and_powers_has_room_for_both():
    (axes,) = sweep_figure(sweep_of([0, 1e-5, 1e-4, 1e-3], 0)).axes
    assert axes.get_xscale() == "symlog"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0", "1e-05", "0.0001", "0.001"]
