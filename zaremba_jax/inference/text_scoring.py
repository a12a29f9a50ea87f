"""Probabilities that models give a text, and their records by sentence or by token."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zaremba_jax.data.published import PUBLISHED
from zaremba_jax.data.text_files import find_files
from zaremba_jax.data.units import UNITS, UNK, Unit
from zaremba_jax.data.vocabulary import Vocabulary, listed
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.errors import InputError
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.model import Model

Each = Literal["sentence", "token"]
Scorer = Callable[[Model, np.ndarray], np.ndarray]  # nats of every token but the first
_UTTERANCE_ID = re.compile("[ \t]*([^ \t\n]+)[ \t]?")


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text of one sentence per line, in terms of a vocabulary.

    `raw_lines` has the lines as `units.Unit` spells them, with their ends if the vocabulary has
    line ends. `utterance_ids` stood before the lines, if any did. Tokens become strings only on
    demand: those of a whole text take many times its memory.
    """

    raw_lines: list[str]
    vocabulary: Vocabulary
    utterance_ids: list[str] | None = None

    @property
    def _unit(self) -> Unit:
        return UNITS[self.vocabulary.unit]

    @property
    def lines(self) -> list[str]:
        """The lines as they are written, without their ends."""
        return [self._unit.unspell(line.removesuffix("\n")) for line in self.raw_lines]

    @property
    def tokens(self) -> Iterator[list[str]]:
        """The tokens of each line."""
        return map(self._unit.split, self.raw_lines)

    @functools.cached_property
    def ids(self) -> list[np.ndarray]:
        """The ids of each line."""
        return list(map(self.vocabulary.encode, self.tokens))

    @functools.cached_property
    def unknown(self) -> dict[str, int]:
        """The tokens that the vocabulary lacks, and how often each occurs."""
        return self.vocabulary.unknown(itertools.chain.from_iterable(self.tokens))

    @functools.cached_property
    def stream(self) -> np.ndarray:
        """All ids, one line after another."""
        return np.concatenate(self.ids)

    @property
    def is_known(self) -> np.ndarray:
        """Whether each token of the stream is another than `<unk>`."""
        words = self.vocabulary.words
        return self.stream != (words.index(UNK) if UNK in words else -1)


def read_text(
    path: str | Path, model: Model, *, whole_lines: bool = False, with_utterance_ids: bool = False
) -> Text:
    """Reads a text file, a stream, or several, named as `text_files.find_files` takes them.

    The tokens are those of a run that evaluates the text: by characters and bytes, white
    space and line ends count. Line ends are left out only if the vocabulary cannot have
    them.

    Args:
      path: names the file or files.
      model: the text is read as the model's own was.
      whole_lines: end the last line as the others, whether or not the file does.
      with_utterance_ids: what stands before the first space or tab of each line names it, and
        is not part of the text.

    Raises:
      MissingFileError: there is no such file.
      InputError: it has no tokens, or is not UTF-8 (unless read by bytes), or has tokens that are
        not in the vocabulary, which has no `<unk>`, or a line lacks its id.
    """
    vocabulary, unit = model.vocabulary, UNITS[model.vocabulary.unit]
    published = PUBLISHED.get(model.config.corpus)
    normalize_whitespace = published is not None and published.normalize_whitespace
    pieces = find_files(path, read_once=True)
    blocks = (unit.read(piece, normalize_whitespace) for piece in pieces)
    lines = re.findall("[^\n]*\n|[^\n]+", "".join(itertools.chain.from_iterable(blocks)))
    if whole_lines and lines:
        lines[-1] = lines[-1].removesuffix("\n") + "\n"
    if not vocabulary.reads_line_ends:
        lines = [line.removesuffix("\n") for line in lines]
    utterance_ids = None
    if with_utterance_ids:
        utterance_ids, lines = _without_utterance_ids(lines, unit, path)
    if not any(map(unit.split, lines)):
        raise InputError(f"{path}: holds no {unit.noun}s; give a text with one sentence per line")
    text = Text(lines, vocabulary, utterance_ids)
    if text.unknown and UNK not in vocabulary.words:
        raise InputError(
            f"{path}: {len(text.unknown)} {unit.noun}s are not in the model's vocabulary, which has"
            f" no {UNK}: {listed(text.unknown)}; replace them"
        )
    return text


def _without_utterance_ids(
    lines: list[str], unit: Unit, path: str | Path
) -> tuple[list[str], list[str]]:
    """The ids that stand before spelled lines, and the rest of the lines."""
    ids, rest = [], []
    for number, line in enumerate(lines, start=1):
        match = _UTTERANCE_ID.match(line)
        if match is None:
            raise InputError(
                f"{path}: line {number} has no utterance id; put one before each sentence, or score"
                " the text without ids"
            )
        ids.append(unit.unspell(match[1]))
        rest.append(line[match.end() :])
    return ids, rest


def stream_nll(models: list[Model], text: Text, score: Scorer) -> np.ndarray:
    """Nats of every token under the mixture of the models, which read all lines as one stream.

    The first token, which nothing predicts, has none (NaN).
    """
    nll = np.stack([score(model, text.stream) for model in models])
    return np.concatenate([[np.nan], mixture_nll(nll)])


def independent_nll(models: list[Model], text: Text) -> np.ndarray:
    """The same, with each line read on its own, after the end of another.

    Raises:
      InputError: the vocabulary has no line ends to begin after.
    """
    end = models[0].vocabulary.line_end
    if end is None:
        raise InputError(
            "the model's text had no line ends after which lines could begin; score them as one"
            " stream"
        )
    (start,) = models[0].vocabulary.encode([end]).tolist()
    nll = [np.concatenate(lines_nll(model, text.ids, start)) for model in models]
    return mixture_nll(np.stack(nll))


def records(text: Text, nll: np.ndarray, each: Each) -> list[dict[str, Any]]:
    """One record per sentence or token, with natural logarithms of probabilities."""
    ends = np.cumsum([len(line) for line in text.ids])
    named = [{"line": number} for number in range(1, len(text.raw_lines) + 1)]
    if text.utterance_ids is not None:
        pairs = zip(named, text.utterance_ids, strict=True)
        named = [line | {"utterance_id": utterance} for line, utterance in pairs]
    parts = zip(named, text.lines, text.tokens, np.split(nll, ends[:-1]), strict=True)
    if each == "sentence":
        return [
            name | _sentence_record(line, tokens, of_line, text.unknown)
            for name, line, tokens, of_line in parts
        ]
    return [
        {**name, "place": place, **_token_record(token, nats, text.unknown)}
        for name, _, tokens, of_line in parts
        for place, (token, nats) in enumerate(zip(tokens, of_line.tolist(), strict=True), 1)
    ]


def _sentence_record(
    line: str, tokens: list[str], nll: np.ndarray, unknown: Container[str]
) -> dict[str, Any]:
    is_scored = ~np.isnan(nll)
    return {
        "log_probability": -float(nll[is_scored].sum()),
        "tokens": int(is_scored.sum()),
        "unknown": sum(token in unknown for token in itertools.compress(tokens, is_scored)),
        "text": line,
    }


def _token_record(token: str, nats: float, unknown: Container[str]) -> dict[str, Any]:
    return {
        "token": token,
        "unknown": token in unknown,
        "log_probability": None if np.isnan(nats) else -nats,
    }
