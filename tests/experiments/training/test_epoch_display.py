import io
import signal
from types import SimpleNamespace
from typing import Any

import invoke
import pytest
from rich.console import Console

from experiments.training.epoch_display import EpochDisplay, _duration
from experiments.training.journal import Journal
from zaremba_jax.config import override
from zaremba_jax.presets import QUICK

METRICS = {
    "epoch": 2,
    "learning_rate": 0.8333333,
    "train_perplexity": 123.456,
    "words_per_second": 45678.9,
    "valid_perplexity_estimate": 98.765,
    "seconds": 72.34,
}
TITLES = "epoch        rate     train     valid    words/s     time     total\n"
ROW = "2/5         0.833    123.46     98.77     45,679   12.3 s      1:12\n"
OF_MANY = METRICS | {
    "train_perplexities": [100.0, None, 146.912],
    "valid_perplexity_best": 90.0,
    "valid_perplexity_worst": 1e6,
}


def run_of(
    metrics: dict[str, Any], *, step: int = 15, unit="word", models=1, are_alike=True
) -> Any:
    """What the display asks of a run that trained for an epoch and a half of five."""
    history = [{"epoch": 1, "seconds": 60.0, "valid_perplexity_estimate": 120.0}, metrics]
    config = override(QUICK, epochs=5)
    return SimpleNamespace(
        config=config,
        all_configs=[config] * models,
        are_alike=are_alike,
        corpus=SimpleNamespace(vocabulary=SimpleNamespace(unit=unit)),
        windows=range(10),
        step=step,
        journal=Journal([0.0] * models, seconds=72.34, history=history),
    )


def printed(metrics, width=80, **about) -> str:
    """What a file of this width gets after an epoch."""
    file = io.StringIO()
    with EpochDisplay(Console(file=file, width=width), run_of(metrics, **about), 0) as display:
        display.epoch(metrics)
    return file.getvalue()


def on_a_terminal(width):
    """What a terminal shows before the first windows, after them, and after the epoch."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, highlight=False)
    with EpochDisplay(console, run_of(METRICS), 0) as display:
        display.refresh()
        display.windows(METRICS)
        display.refresh()
        display.epoch(METRICS)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80])
def test_bar_says_that_it_compiles_and_then_where_the_run_stands(width):
    shown = on_a_terminal(width)
    assert "compiling" in shown
    assert "━" in shown
    assert "epoch 2/5" in shown
    assert "train 123.46" in shown
    assert " left" in shown
    assert ("45,679 words/s" in shown.partition(TITLES)[0]) == (width == 80)
    assert "…" not in shown


def test_bar_says_so_when_a_chunk_of_another_length_is_compiled():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with EpochDisplay(console, run_of(METRICS), 0) as display:
        said = []
        for windows in (4, 4, 2, 4, 2):  # the first of an epoch, then its shorter last one
            display.begins(windows)
            said.append(display.tasks[0].description)
            display.windows(METRICS)
    assert said == ["compiling", "epoch 2/5", "compiling", "epoch 2/5", "epoch 2/5"]


def test_row_of_an_epoch_stays_and_tells_its_time_from_the_total():
    assert TITLES + ROW in on_a_terminal(80)
    assert printed(METRICS) == TITLES + ROW


@pytest.mark.parametrize("unit", ["word", "char"])
@pytest.mark.parametrize("models", [1, 10])
@pytest.mark.parametrize("width", [60, 80])
def test_rows_fit_whatever_they_tell_and_keep_their_columns(width, models, unit):
    metrics = OF_MANY if models > 1 else METRICS
    rate = metrics | {"learning_rate": 1.234567e-05}
    plain, small = (printed(m, width, unit=unit, models=models) for m in (metrics, rate))
    titles, row = plain.splitlines()
    assert len(titles) == len(row) == len(small.splitlines()[1]) <= width
    kept = {"epoch", "train", "valid", "time", "total"}
    kept |= {"best"} if models > 1 and (width, unit) != (60, "char") else set()
    assert kept | ({"bits"} if unit == "char" else set()) <= set(titles.split())


def test_characters_are_called_so_and_have_bits():
    titles, row = (line.split() for line in printed(METRICS, 100, unit="char").splitlines())
    assert dict(zip(titles, row, strict=False))["bits"] == "6.626"  # log2 of 98.765
    assert "characters/s" in titles


def test_row_of_a_sweep_has_no_mean_over_its_settings():
    swept = {name: OF_MANY[name] for name in OF_MANY.keys() - {"learning_rate"}}
    titles, row = printed(swept, models=3, are_alike=False).splitlines()
    assert titles.split() == ["epoch", "train", "best", "worst", "words/s", "time", "total"]
    assert row.split()[:4] == ["2/5", "100.00", "90.00", "1e+06"]


@pytest.mark.parametrize(("are_alike", "train"), [(True, "123.46"), (False, "100.00")])
def test_part_of_an_epoch_of_many_models_has_their_training_figure_on_any_width(are_alike, train):
    figures = ("epoch", "train_perplexity", "train_perplexities", "words_per_second")
    so_far = {name: OF_MANY[name] for name in figures}
    file = io.StringIO()
    run = run_of(METRICS, models=3, are_alike=are_alike)
    with EpochDisplay(Console(file=file, width=60), run, 0) as display:
        display.windows(so_far)
    titles, row = file.getvalue().splitlines()
    end = titles.index("train") + len("train")
    assert row[:end].split() == ["2/5", "50%", train]


def test_row_of_other_columns_than_the_last_has_titles_of_its_own():
    apart = {name: METRICS[name] for name in METRICS.keys() - {"learning_rate"}}
    file = io.StringIO()
    console = Console(file=file, width=80)
    with EpochDisplay(console, run_of(METRICS), 0) as display:
        for metrics in (METRICS, METRICS, apart, apart):  # rates differ after a stall of one model
            display.epoch(metrics)
    titles, _, same, others, row, _ = file.getvalue().splitlines(keepends=True)
    assert (titles, same) == (TITLES, ROW)
    assert "rate" not in others
    for title, figure in (("train", "123.46"), ("valid", "98.77"), ("total", "1:12")):
        assert others.index(title) + len(title) == row.index(figure) + len(figure)


def test_off_a_terminal_a_part_of_an_epoch_has_a_row_at_once_and_then_by_the_clock():
    so_far = {name: METRICS[name] for name in METRICS.keys() - {"valid_perplexity_estimate"}}
    lines = []
    for minutes in (60.0, 0.0):
        file = io.StringIO()
        with EpochDisplay(Console(file=file, width=80), run_of(METRICS), minutes) as display:
            for _ in range(3):
                display.windows(so_far)
        lines.append(file.getvalue().splitlines())
    assert [len(shown) for shown in lines] == [2, 4]
    assert lines[0][1] == "2/5 50%     0.833    123.46               45,679   12.3 s      1:12"


def test_bar_of_a_resumed_run_starts_where_the_run_stands():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with EpochDisplay(console, run_of(METRICS, step=30), 1) as progress:
        (task,) = progress.tasks
        assert (task.completed, task.total) == (30, 50)


def test_bar_is_taken_away_when_training_fails():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    with pytest.raises(ArithmeticError), EpochDisplay(console, run_of(METRICS, step=0), 1):
        raise ArithmeticError
    assert file.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.94, "59.9 s"), (72.34, "1:12"), (3599.4, "59:59"), (3600, "1:00:00"), (45296, "12:34:56")],
)
def test_times_have_hours_from_an_hour_on(seconds, shown):
    assert _duration(seconds) == shown


def test_ctrl_c_while_the_bar_begins_is_put_off_until_the_run_is_saved(folder, monkeypatch):
    begin = EpochDisplay.start

    def interrupted(display):
        begin(display)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EpochDisplay, "start", interrupted)
    outcome = invoke.run(*invoke.SINGLE, "--workdir=run")
    assert outcome.status == 128 + signal.SIGINT
    assert "stopped by SIGINT after epoch 0, window 17 of 119; saved in run" in outcome.out
