"""Nats of unrelated lines, such as the hypotheses of an n-best list."""

from collections import defaultdict
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from zaremba_jax.evaluate import text_nll, window_nll
from zaremba_jax.model import Model

TOKENS_PER_BATCH = 4096  # a power of two, so that no line is padded beyond it


def lines_nll(model: Model, lines: Sequence[np.ndarray], start: int) -> list[np.ndarray]:
    """Nats of every token of each line, read after `start` from the zero state.

    Lines of similar length are read side by side, so that few programs are compiled; a line
    longer than `TOKENS_PER_BATCH` is read on its own, window by window.

    Args:
      model: the model.
      lines: the ids of each, at least one, including the token that ends it.
      start: the token before a line's first, the one that ends a line.

    Returns:
      [tokens of the line] for each, in the parameters' type, in the order of the lines.

    Raises:
      InputError: as for `Model.check_ids`.
    """
    model.check_ids(np.concatenate([[start], *lines]))
    predictor = model.predictor
    groups = defaultdict(list)
    results = [np.empty(0, np.float32)] * len(lines)
    for index, line in enumerate(lines):
        if len(line) > TOKENS_PER_BATCH:
            results[index] = text_nll(model, np.concatenate([[start], line]))
        else:
            groups[_power_of_two(len(line))].append(index)
    for time, group in groups.items():
        batch = min(TOKENS_PER_BATCH // time, _power_of_two(len(group)))
        for first in range(0, len(group), batch):
            chosen = group[first : first + batch]
            tokens = np.full((time + 1, batch), start, np.int32)
            for column, index in enumerate(chosen):
                tokens[1 : len(lines[index]) + 1, column] = lines[index]
            inputs, targets = jnp.asarray(tokens[:-1]), jnp.asarray(tokens[1:])
            state = predictor.zero_state(batch)
            nll = np.asarray(window_nll(predictor, inputs, targets, state)[0])
            for column, index in enumerate(chosen):
                results[index] = nll[: len(lines[index]), column]
    return results


def _power_of_two(size: int) -> int:
    """The least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
