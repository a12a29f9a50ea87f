"""What models give to the tokens of a text: its records, by sentence or by token."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.models import line_end, listed, unknown_tokens
from experiments.workdir import write_text
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.exported import Model
from zaremba_jax.lines import lines_nll
from zaremba_jax.published import PUBLISHED
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.text_files import find_files, read_blocks, read_bytes
from zaremba_jax.vocabulary import NOUNS, UNK, Vocabulary, split

Each = Literal["sentence", "token"]
Reader = Callable[[Model, np.ndarray], np.ndarray]  # nats of every token but the first
_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text, a sentence a line, as a vocabulary has it.

    `read` has the lines, with their ends where the vocabulary has line ends, and a
    character for a byte. Tokens become strings only as they are asked for: those of a whole
    text take many times its room.
    """

    read: list[str]
    vocabulary: Vocabulary

    @property
    def lines(self) -> list[str]:
        """Each as it is written, without its end."""
        plain = [line.removesuffix("\n") for line in self.read]
        if self.vocabulary.unit == "byte":
            return [line.encode("latin-1").decode(errors="replace") for line in plain]
        return plain

    @property
    def tokens(self) -> Iterator[list[str]]:
        """Those of each line."""
        unit = "word" if self.vocabulary.unit == "word" else "char"
        return (split(line, unit) for line in self.read)

    @functools.cached_property
    def ids(self) -> list[np.ndarray]:
        """Those of each line."""
        return list(map(self.vocabulary.encode, self.tokens))

    @functools.cached_property
    def unknown(self) -> dict[str, int]:
        """How often what the vocabulary lacks occurs."""
        return unknown_tokens(self.vocabulary, itertools.chain.from_iterable(self.tokens))

    @property
    def stream(self) -> np.ndarray:
        """All ids, one line after another."""
        return np.concatenate(self.ids)


def read_text(path: str | Path, model: Model, whole_lines: bool = False) -> Text:
    """Reads a text file, or several that are named as `text_files.find_files` takes them.

    Their tokens are those that a run has which evaluates them: white space and line ends
    count by characters and bytes. Only where the vocabulary can have no line ends, they
    are left out.

    Args:
      path: of the file.
      model: whose text is read the same.
      whole_lines: the last line ends as the others do, whether the file has that or not.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is empty or, but for bytes, not UTF-8, or has tokens that the
        vocabulary lacks, and that has no `<unk>`.
    """
    vocabulary = model.vocabulary
    content, noun = _content(path, model), NOUNS[vocabulary.unit]
    if not (content.strip() if noun == "word" else content):
        raise ValueError(f"{path}: holds no {noun}s; give a text with one sentence a line")
    lines = re.findall("[^\n]*\n|[^\n]+", content)
    if whole_lines:
        lines[-1] = lines[-1].removesuffix("\n") + "\n"
    if not _has_ends(vocabulary):
        lines = [line.removesuffix("\n") for line in lines]
    text = Text(lines, vocabulary)
    if text.unknown and UNK not in vocabulary.words:
        raise ValueError(
            f"{path}: {len(text.unknown)} {noun}s are not the model's, which has no"
            f" {UNK}: {named(text.unknown)}; replace them"
        )
    return text


def _content(path: str | Path, model: Model) -> str:
    unit, entry = model.vocabulary.unit, PUBLISHED.get(model.config.corpus)
    pieces = find_files(path)
    if unit == "byte":
        return b"".join(block for piece in pieces for block in read_bytes(piece)).decode("latin-1")
    plain_lines = entry is not None and entry.plain_lines
    return "".join(block for piece in pieces for block in read_blocks(piece, unit, plain_lines))


def _has_ends(vocabulary: Vocabulary) -> bool:
    """Whether line ends are tokens: also of characters where they are rare ones."""
    rare = vocabulary.unit == "char" and UNK in vocabulary.words
    return rare or line_end(vocabulary) is not None


def named(unknown: dict[str, int]) -> str:
    """The tokens that are unknown, on one line even if they are line ends."""
    return listed({token.translate(_ESCAPES): count for token, count in unknown.items()})


def stream_nll(models: list[Model], text: Text, read: Reader) -> np.ndarray:
    """Nats of every token under the mixture of the models, which read on from line to line.

    The first token, which nothing predicts, has none (nan).
    """
    each = np.stack([read(model, text.stream) for model in models])
    return np.concatenate([[np.nan], mixture_nll(each)])


def independent_nll(models: list[Model], text: Text) -> np.ndarray:
    """The same, each line read on its own, after the end of another.

    Raises:
      ValueError: the vocabulary has no line ends to begin after.
    """
    end = line_end(models[0].vocabulary)
    if end is None:
        raise ValueError("--independent: the model's text had no line ends; leave it out")
    (start,) = models[0].vocabulary.encode([end]).tolist()
    each = [
        np.concatenate(
            lines_nll(
                model.params, text.ids, start, model.config.compute, expected_masks(model.config)
            )
        )
        for model in models
    ]
    return mixture_nll(np.stack(each))


def records(text: Text, nll: np.ndarray, each: Each) -> list[dict[str, Any]]:
    """A record a sentence or a token, with natural logarithms of probabilities."""
    known = set(text.unknown)
    ends = np.cumsum([len(line) for line in text.ids])
    result = []
    for number, (line, tokens, of_line) in enumerate(
        zip(text.lines, text.tokens, np.split(nll, ends[:-1]), strict=True), 1
    ):
        if each == "sentence":
            scored = of_line[~np.isnan(of_line)]
            result.append(
                {
                    "line": number,
                    "log_probability": -float(scored.sum()),
                    "tokens": len(scored),
                    "unknown": sum(token in known for token in tokens),
                    "text": line,
                }
            )
            continue
        for place, (token, nats) in enumerate(zip(tokens, of_line.tolist(), strict=True), 1):
            log_probability = None if np.isnan(nats) else -nats
            result.append(
                {
                    "line": number,
                    "place": place,
                    "token": token,
                    "unknown": token in known,
                    "log_probability": log_probability,
                }
            )
    return result


def write_records(path: Path, found: list[dict[str, Any]]) -> None:
    """Writes JSON lines or, where the path ends in `.tsv`, tab-separated values with a header."""
    if path.suffix == ".tsv":
        rows = [list(found[0]), *(list(record.values()) for record in found)]
        lines = ["\t".join(map(_cell, row)) for row in rows]
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value).translate(_ESCAPES)
