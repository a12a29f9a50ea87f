import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports.figures import (
    OF_PAPER,
    label_epochs,
    label_logarithmic,
    label_values,
    line_styles,
    panels,
    round_numbers,
)


@given(st.floats(1e-4, 1e6), st.floats(1e-3, 12))
def test_labels_of_a_logarithmic_axis_never_collide_and_there_is_one(low, width):
    high = low * math.exp(width)
    ticks = round_numbers(low, high, apart=0.07)
    assert ticks
    assert low <= min(ticks) <= max(ticks) <= high
    assert np.all(np.diff(np.log(ticks)) > 0.0699 * width)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_no_two_lines_look_alike(count):
    styles = line_styles(count)
    assert len({style["color"] for style in styles}) == count
    assert len({(str(style["linestyle"]), style["marker"]) for style in styles}) == count


@pytest.mark.parametrize("count", [9, 10, 14, 20, 30])
def test_colours_of_many_lines_are_far_from_their_neighbours_or_a_gradient(count):
    spread, graded = line_styles(count), line_styles(count, graded=True)
    order = [style["color"] for style in graded]
    places = [order.index(style["color"]) for style in spread]
    assert sorted(places) == list(range(count))
    assert np.abs(np.diff(places)).min() >= 0.3 * count
    assert [style["marker"] for style in spread] == [style["marker"] for style in graded]


@pytest.mark.parametrize(("epochs", "marks"), [(1, 1), (13, 13), (55, 11)])
def test_curves_over_many_epochs_have_few_marks(epochs, marks):
    _, (axes,) = panels(4, 3)
    (line,) = axes.plot(range(1, epochs + 1), np.ones(epochs), marker="o")
    label_epochs(axes)
    assert len(line.get_xdata()[:: line.get_markevery()]) == marks


def test_no_grid_crosses_the_papers_diamonds():
    figure, (axes,) = panels(4, 3)
    (paper,) = axes.plot([1, 2], [100, 200], **OF_PAPER)
    label_logarithmic(axes)
    figure.draw_without_rendering()
    assert axes.yaxis.get_zorder() < paper.get_zorder()


def test_values_too_close_to_be_labelled_still_have_a_tick():
    _, (axes,) = panels(4, 3)
    label_values(axes, [0, 0.001, 0.5, 1], logarithmic=False)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "1"]
    assert axes.get_xticks(minor=True).tolist() == [0.001]


def test_axis_of_powers_of_ten_with_zero_is_filled_by_its_values():
    _, (axes,) = panels(4, 3)
    label_values(axes, [0, 1e-5, 1e-4, 1e-3], logarithmic=True)
    shown = axes.xaxis.get_transform().transform(np.array([*axes.get_xlim(), 0, 1e-3]))
    left, right, zero, last = shown.tolist()
    assert (zero - left, right - last) == pytest.approx([0.06 * (last - zero)] * 2)
