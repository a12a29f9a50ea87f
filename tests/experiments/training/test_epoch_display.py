import io

import pytest
from rich.console import Console

from experiments.training.epoch_display import EpochDisplay

METRICS = {
    "epoch": 2,
    "learning_rate": 0.8333333,
    "train_perplexity": 123.456,
    "words_per_second": 45678.9,
    "valid_perplexity_estimate": 98.765,
    "seconds": 12.34,
}
EPOCH_LINE = (
    "epoch  2/5  rate 0.8333   train   123.46  valid    98.77     45,679 words/s    12.3 s\n"
)


@pytest.fixture
def shown():
    """A function that returns what a terminal, or another output, shows of some training."""

    def show(terminal):
        file = io.StringIO()
        console = Console(file=file, width=120, force_terminal=terminal, highlight=False)
        with EpochDisplay(console, epochs=5, windows_per_epoch=10, step=10) as progress:
            progress.windows(15, METRICS)
            progress.refresh()
            progress.epoch(METRICS)
        return file.getvalue()

    return show


@pytest.mark.parametrize(
    "part", ["epoch 2/5", "perplexity 123.46", "rate 0.8333", "45,679 words/s", "━"]
)
def test_bar_on_a_terminal_shows_where_the_run_stands(shown, part):
    assert part in shown(terminal=True).replace(EPOCH_LINE, "")


def test_line_of_an_epoch_stays_on_a_terminal(shown):
    assert EPOCH_LINE in shown(terminal=True)


def test_off_a_terminal_there_is_the_line_of_an_epoch_and_nothing_else(shown):
    assert shown(terminal=False) == EPOCH_LINE


def test_line_of_an_epoch_is_never_wrapped():
    file = io.StringIO()
    with EpochDisplay(Console(file=file, width=20), 5, 10, 0) as progress:
        progress.epoch(METRICS)
    assert file.getvalue() == EPOCH_LINE


def test_bar_of_a_resumed_run_starts_where_the_run_stands():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with EpochDisplay(console, epochs=5, windows_per_epoch=10, step=30) as progress:
        (task,) = progress.tasks
        assert (task.completed, task.total) == (30, 50)


def test_bar_is_taken_away_when_training_fails():
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)
    with (
        pytest.raises(ArithmeticError),
        EpochDisplay(console, epochs=5, windows_per_epoch=10, step=0),
    ):
        raise ArithmeticError
    assert file.getvalue().endswith(("\x1b[?25h", "\x1b[2K"))
