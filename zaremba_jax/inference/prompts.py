"""What a model reads before the first token that it generates."""

import numpy as np

from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.data.vocabulary import Vocabulary, listed, on_one_line
from zaremba_jax.errors import InputError

_SHOWN = 60  # characters of a text in an error message


def prompt_ids(
    vocabulary: Vocabulary, prompt: str, source: str = "prompt"
) -> tuple[np.ndarray, dict[str, int]]:
    """The ids of a prompt, int32 [N], and how often it has each token that the vocabulary lacks.

    A prompt begins a line: the end of another comes before it if the vocabulary has line ends.

    Args:
      vocabulary: the model's.
      prompt: the text, which may be empty.
      source: what error messages call it.

    Raises:
      InputError: a token is unknown and the vocabulary has no `<unk>`, or there is nothing
        to read.
    """
    end, tokens = vocabulary.line_end, vocabulary.tokenize(prompt)
    unknown, noun = vocabulary.unknown(tokens), UNITS[vocabulary.unit].noun
    if unknown and UNK not in vocabulary.words:
        line = on_one_line(prompt)
        shown = line[:_SHOWN] + "…" * (len(line) > _SHOWN)
        raise InputError(
            f"{source}={shown}: not among the {len(vocabulary)} {noun}s of the model:"
            f" {listed(unknown)}; leave them out"
        )
    if end is None and not tokens:
        raise InputError(f"{source}: the vocabulary has no line ends to begin at; give a {noun}")
    return vocabulary.encode(tokens if end is None else [end, *tokens], source), unknown
