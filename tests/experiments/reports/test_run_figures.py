import struct
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from rich.console import Console

from experiments.reports.figures import as_svg, line_styles, write_picture
from experiments.reports.run_figures import curves_figure, mixtures_figure, sweep_figure

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
    assert "<svg" in as_svg(figure_of, HISTORY, corpus="小说.txt")


def test_pictures_are_the_same_whatever_the_users_settings_of_matplotlib(tmp_path):
    pictures, sizes = [], []
    settings: Any
    for settings in ({}, {"text.usetex": True, "font.size": 30}):
        with matplotlib.rc_context(settings):
            write_picture(Console(), tmp_path / "curves.png", figure_of, HISTORY)
            sizes.append(len(as_svg(figure_of, HISTORY)))
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert sizes[0] == sizes[1]


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


def test_marks_of_a_long_run_leave_its_dashes_to_be_seen():
    figure = figure_of([HISTORY[-1] | {"epoch": epoch} for epoch in range(1, 41)])
    for axes in figure.axes:
        assert axes.get_lines()[1].get_markevery() == 4


def test_many_lines_of_a_sweep_are_a_gradient():
    sweep = sweep_of([0.5], 0.5)
    members = sweep["settings"][0]["members"]
    sweep["settings"] = [
        {"setting": {"l2": 0.5, "dropout": n / 10}, "members": members} for n in range(10)
    ]
    sweep["best"] = None
    (axes,) = sweep_figure(sweep).axes
    colors = [style["color"] for style in line_styles(10, graded=True)]
    assert [line.get_color() for line in axes.get_lines()] == colors


def test_axes_say_what_they_show():
    figure = figure_of(HISTORY)
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("perplexity", "learning rate")
    assert lower.get_xlabel() == "epoch"
    final = "final: 82.50 on validation and 80.04 on test"
    assert upper.get_title() == f"Penn Treebank, small, dropout=0.5\n{final}"
    assert lower.get_yscale() == "log"  # on which every decay is seen


def test_no_figure_is_left_open(tmp_path):
    write_picture(Console(), tmp_path / "curves.png", curves_figure, HISTORY, SUMMARY)
    assert pyplot.get_fignums() == []


def test_title_has_what_makes_the_model_another_than_its_preset():
    figure = figure_of(HISTORY, config={"name": "small", "corpus": "files", "dropout": 0.5})
    assert figure.axes[0].get_title().startswith("Penn Treebank, small, dropout=0.5\n")


def test_averages_have_their_spread_and_the_papers_figures():
    mixtures = [
        {"members": size, "valid_perplexity": 9.0 / size, "valid_spread": 0.5}
        | {"test_perplexity": 8.0 / size, "test_spread": 0.25}
        | {"paper_valid_perplexity": 7.0 if size == 2 else None, "paper_test_perplexity": None}
        for size in (1, 2)
    ]
    (axes,) = mixtures_figure(SUMMARY | {"mixtures": mixtures}).axes
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert list(drawn) == ["validation", "test"]
    for (label, bars), first, spread in zip(drawn.items(), (9.0, 8.0), (0.5, 0.25), strict=True):
        line, _, (bar,) = bars.lines
        assert line.get_xydata().tolist() == [[1, first], [2, first / 2]], label
        ends = [segment[:, 1].tolist() for segment in bar.get_segments()]
        assert ends == [[y - spread, y + spread] for y in (first, first / 2)]
    (paper,) = (line for line in axes.lines if line.get_marker() == "D")
    assert (paper.get_label(), paper.get_xydata().tolist()) == ("validation, paper", [[2, 7.0]])


def sweep_of(values, best):
    members = {value: [60 + value, 62 + value] for value in values}
    lines = [
        {"setting": {"l2": value}, "members": [{"valid_perplexity": p} for p in members[value]]}
        for value in values
    ]
    what = {"corpus": "toy", "name": "quick", "config": {"name": "quick"}}
    return what | {"settings": lines, "best": {"l2": best}}


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.5], "linear"),
        ([0.5, 0, 0.1], "linear"),
        ([0, 0.1, 0.3, 0.8], "linear"),
        ([0, 1e-4, 1e-3, 0.01], "symlog"),
        ([1e-4, 1e-3, 0.01], "log"),
    ],
)
def test_sweep_places_values_where_they_are_and_marks_the_best(values, scale):
    (axes,) = sweep_figure(sweep_of(values, values[0])).axes
    line, best = axes.get_lines()
    assert list(line.get_xdata()) == sorted(values)
    assert axes.get_xscale() == scale
    assert axes.get_xlabel().endswith(", logarithmic") == scale.endswith("log")
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


def test_line_that_is_above_the_picture_says_so():
    sweep = sweep_of([0.5, 1.0], 0.5)
    sweep["settings"] = [
        {"setting": line["setting"] | {"dropout": rate}, "members": [{"valid_perplexity": x}] * 2}
        for line in sweep["settings"]
        for rate, x in ((0.0, 61.5), (0.25, 200.0))
    ]
    sweep["best"] = {"l2": 0.5, "dropout": 0.0}
    assert legend(sweep_figure(sweep))[:2] == ["dropout 0", "dropout 0.25 (above the picture)"]


def test_sweep_of_two_rates_has_a_line_for_each_value_of_the_second_without_what_diverged():
    sweep = sweep_of([0.5, 1.0], 0.5)
    sweep["settings"] = [
        {"setting": line["setting"] | {"dropout": rate}, "members": line["members"]}
        for line in sweep["settings"]
        for rate in (0.0, 0.25)
    ]
    sweep["best"]["dropout"] = 0.0
    sweep["settings"][-1]["members"] = [{"excluded": "the loss became nan"}] * 2
    sweep["config"] |= {"layers": 3, "dropout": 0.0, "l2": 0.5}
    figure = sweep_figure(sweep)
    assert figure.axes[0].get_title() == "toy, quick, layers=3"
    whole, cut, _ = figure.axes[0].get_lines()
    assert whole.get_ydata().tolist() == [61.5, 62.0]
    assert cut.get_ydata()[0] == 61.5
    assert np.isnan(cut.get_ydata()[1])
    assert legend(figure) == ["dropout 0", "dropout 0.25", "best: l2 0.5, dropout 0"]


def test_sweep_of_zero_and_powers_has_room_for_both():
    (axes,) = sweep_figure(sweep_of([0, 1e-5, 1e-4, 1e-3], 0)).axes
    assert axes.get_xscale() == "symlog"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0", "1e-05", "0.0001", "0.001"]
