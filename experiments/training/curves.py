"""The curves of a run, over the windows trained on: what they are called, and who shows them.

Boards sort tags by name; losses come first.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from zaremba_jax.array_types import WindowStatistics
from zaremba_jax.inference.gates import Gates

_TANHS = ("u", "n", "h")  # range from -1; the other gates are sigmoids, which range from 0
_BINS = 20
# The curves of an epoch so far, by what metrics call them; models may have no rate in common.
_SO_FAR = {
    "loss/train_perplexity_of_epoch_so_far": "train_perplexity",
    "optimizer/learning_rate": "learning_rate",
    "speed/words_per_second": "words_per_second",
}


class Board(Protocol):
    """Shows curves. It begins anew at each start of a program, behind what it showed before."""

    name: str
    failures: tuple[type[Exception], ...]  # what its methods raise if it cannot go on

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Opens it for a run with these settings."""
        ...

    def points(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each of some curves."""
        ...

    def histograms(self, step: int, values: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
        """Adds a histogram of each of some arrays, over bins with these edges."""
        ...

    def text(self, step: int, lines: Sequence[str]) -> None:
        """Adds lines that the model wrote."""
        ...

    def results(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the figures that the run ends with."""
        ...

    def flush(self) -> None:
        """Writes to disk what was added: a resumed run does not add it again."""
        ...

    def close(self) -> None:
        """Ends what `begin` began, if it did, and even after a failure."""
        ...


class Curves:
    """Gives the points of a run to some boards; training goes on without a board that fails."""

    def __init__(self, boards: list[Board], settings: Mapping[str, Any], console: Console):
        """`settings` are those of the run. With several hosts, only the first has boards.

        `are_wanted` says on every host whether there are any: what they show may take all hosts.
        """
        self.are_wanted = bool(boards)
        self._boards = boards if jax.process_index() == 0 else []
        self._console = console
        self._each(lambda board: board.begin(settings))

    def windows(self, step: int, window_averages: dict[str, float], so_far: dict[str, Any]) -> None:
        """Adds points for the last windows, from `averages`, and for the epoch so far."""
        points = {tag: so_far[name] for tag, name in _SO_FAR.items() if name in so_far}
        self._each(lambda board: board.points(step, window_averages | points))

    def epoch(
        self, step: int, record: dict[str, Any], gates: Gates, texts: Sequence[str] = ()
    ) -> None:
        """Adds an epoch's estimates, a histogram of each gate, and texts that the model wrote."""
        estimates = {
            f"loss/{name}": value
            for name, value in record.items()
            if name.startswith("valid_") and isinstance(value, float)
        }
        self._each(lambda board: board.points(step, estimates))
        for lowest in (-1, 0):
            values = {
                f"recurrence/layer_{depth}_{gate}": np.asarray(values, np.float64)
                for depth, of_layer in enumerate(gates, start=1)
                for gate, values in of_layer.items()
                if (gate in _TANHS) == (lowest < 0)
            }
            edges = np.linspace(lowest, 1, _BINS + 1)
            self._each(lambda board, *added: board.histograms(*added), step, values, edges)
        if texts:
            self._each(lambda board: board.text(step, texts))

    def results(self, step: int, summary: Mapping[str, Any]) -> None:
        """Adds the final perplexities of a summary."""
        figures = {name: summary[name] for name in ("valid_perplexity", "test_perplexity")}
        self._each(lambda board: board.results(step, figures))

    def flush(self) -> None:
        """Writes everything to disk."""
        self._each(lambda board: board.flush())

    def _each(self, act: Callable[..., None], *added: Any) -> None:
        for board in list(self._boards):
            try:
                act(board, *added)
            except board.failures as error:
                self._boards.remove(board)
                with contextlib.suppress(*board.failures):
                    board.close()
                reason = " ".join(str(error).split())
                self._console.print(
                    f"{board.name}: {reason}; training goes on without these curves. To have them"
                    " again, mend this, stop the run, and give the same command",
                    soft_wrap=True,
                )

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        self._each(lambda board: board.close())


def averages(windows: WindowStatistics) -> dict[str, float]:
    """Statistics of several windows by the names of their curves."""
    return {
        "loss/train_nats": float(windows.nll.mean()),
        "optimizer/gradient_norm": float(windows.gradient_norm.mean()),
        "optimizer/gradient_norm_largest": float(windows.gradient_norm.max()),
    }
