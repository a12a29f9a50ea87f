"""Fair timing: whoever is timed takes turns in one run, and is compared round by round."""

import time
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

Turn = Callable[[], None]  # does the work once, and returns when the device is done


def take_turns(turns: Mapping[str, Turn], rounds: int) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Seconds that each one's turn takes, in every round.

    A noisy neighbour slows whoever has the turn, so only times of the same round should
    be divided by each other. Every other round runs in reverse order. Each one has a turn
    before the first round.
    """
    for turn in turns.values():
        turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            turns[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.asarray(values) for name, values in seconds.items()}
