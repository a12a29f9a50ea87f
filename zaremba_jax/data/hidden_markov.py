"""Texts from a hidden Markov model, and their exact probabilities under it."""

import dataclasses
from bisect import bisect_right

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenMarkovSource:
    """A hidden Markov model that generates texts; a word's id is its index in `words`.

    With S states and V words, `start` [S] is the distribution of a text's first state,
    row s of `transition` [S, S] that of the state after s, and row s of `emission`
    [S, V] that of the word that s emits.

    Raises:
      ValueError: a table has another shape, or a row that is not a distribution.
    """

    words: tuple[str, ...]
    start: np.ndarray
    transition: np.ndarray
    emission: np.ndarray

    def __post_init__(self):
        (states,), words = self.start.shape, len(self.words)
        shapes = {"start": (states,), "transition": (states, states), "emission": (states, words)}
        for name, shape in shapes.items():
            table = getattr(self, name)
            sums = table.sum(axis=-1)
            if table.shape != shape or table.min() < 0 or np.abs(sums - 1).max() > 1e-9:
                raise ValueError(
                    f"{name}: shape {table.shape}, entries from {table.min():g}, row sums from"
                    f" {sums.min():g} to {sums.max():g}; give rows of probabilities that sum to 1"
                    f" in the shape {shape}"
                )

    def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """Draws a text that begins in the start distribution: ids, int64 [length]."""
        next_states, words = _cumulative(self.transition), _cumulative(self.emission)
        states, ids = _cumulative(self.start), []
        for state_draw, word_draw in rng.random((length, 2)).tolist():
            state = bisect_right(states, state_draw)
            ids.append(bisect_right(words[state], word_draw))
            states = next_states[state]
        return np.array(ids, np.int64)

    def token_nll(self, ids: np.ndarray) -> np.ndarray:
        """-log P(ids[t] | ids[0], ..., ids[t - 1]) for t = 1 to N - 1, in nats, exact.

        The normalised forward algorithm: Rabiner (1989), "A tutorial on hidden
        Markov models", eq. 19-20, scaled as in section V.A.

        Args:
          ids: a text that began in the start distribution, [N] with N at least 2.

        Returns:
          float64 [N - 1].

        Raises:
          ValueError: the text has fewer than 2 tokens, or the source cannot generate it.
        """
        if len(ids) < 2 or min(ids) < 0 or max(ids) >= len(self.words):
            raise ValueError(
                f"{len(ids)} ids from {min(ids, default=0)} to {max(ids, default=0)}: a text has at"
                f" least 2, each the index of one of the source's {len(self.words)} words"
            )
        likelihoods = np.ascontiguousarray(self.emission.T)
        state, probabilities = self.start, np.zeros(len(ids))
        for t, word in enumerate(ids):
            joint = state * likelihoods[word]
            probabilities[t] = joint.sum()
            if probabilities[t] == 0:
                raise ValueError(
                    f"id {word} at position {t}: {self.words[word]!r} cannot follow what comes"
                    " before it; give a text of this source, in its own ids"
                )
            state = (joint / probabilities[t]) @ self.transition
        return -np.log(probabilities[1:])


def _cumulative(probabilities: np.ndarray) -> list:
    sums = np.cumsum(probabilities, axis=-1)
    return (sums / sums[..., -1:]).tolist()  # ends at exactly 1, above every draw
