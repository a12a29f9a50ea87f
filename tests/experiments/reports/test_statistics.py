import pytest

from experiments.reports.statistics import deviation, format_change, format_mean, format_spread


def test_deviation_is_that_of_what_was_sampled_from_and_0_for_a_single_value():
    assert (deviation([1.0, 3.0]), deviation([1.0])) == (pytest.approx(2**0.5), 0)


def test_mean_has_its_deviation_where_there_are_several_values():
    assert format_mean([123456789.0, 3e30], digits=2) == "1.5e+30 ± 2.1e+30"
    assert (format_mean([114.26]), format_mean([1.0, 3.0], digits=2)) == ("114.3", "2.00 ± 1.41")
    assert format_spread(3.0, 0.0, digits=1) == "3.0 ± 0.0"


def test_change_has_its_standard_error_where_the_base_shows_how_values_vary():
    assert format_change([2.0], []) == ""
    assert (format_change([2.0], [1.5]), format_change([1.0], [1.5])) == ("+0.5", "-0.5")
    assert format_change([4.0, 6.0], [1.0, 3.0]) == "+3.0 ± 1.4"


@pytest.mark.parametrize(("value", "change"), [(0.96, "+0.0"), (1.04, "+0.0"), (0.94, "-0.1")])
def test_change_that_is_none_when_rounded_is_not_negative(value, change):
    assert format_change([value], [1.0]) == change
