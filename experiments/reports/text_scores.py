"""Probabilities that models give a text, and their records by sentence or by token."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.cli.trained_models import line_end, listed, unknown_tokens
from experiments.training.run_folder import write_text
from zaremba_jax.data.published import PUBLISHED
from zaremba_jax.data.text_files import find_files, read_blocks, read_bytes
from zaremba_jax.data.vocabulary import UNIT_NAMES, UNK, Vocabulary, tokenize
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.errors import InputError
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.interop.model_file import Model
from zaremba_jax.regularizers import expected_masks

Each = Literal["sentence", "token"]
Scorer = Callable[[Model, np.ndarray], np.ndarray]  # nats of every token but the first
_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text of one sentence per line, in terms of a vocabulary.

    `raw_lines` has the lines, with their ends if the vocabulary has line ends; bytes are one
    character each. Tokens become strings only on demand: those of a whole text take many
    times its memory.
    """

    raw_lines: list[str]
    vocabulary: Vocabulary

    @property
    def lines(self) -> list[str]:
        """The lines as they are written, without their ends."""
        plain = [line.removesuffix("\n") for line in self.raw_lines]
        if self.vocabulary.unit == "byte":
            return [line.encode("latin-1").decode(errors="replace") for line in plain]
        return plain

    @property
    def tokens(self) -> Iterator[list[str]]:
        """The tokens of each line."""
        unit = "word" if self.vocabulary.unit == "word" else "char"
        return (tokenize(line, unit) for line in self.raw_lines)

    @functools.cached_property
    def ids(self) -> list[np.ndarray]:
        """The ids of each line."""
        return list(map(self.vocabulary.encode, self.tokens))

    @functools.cached_property
    def unknown(self) -> dict[str, int]:
        """The tokens that the vocabulary lacks, and how often each occurs."""
        return unknown_tokens(self.vocabulary, itertools.chain.from_iterable(self.tokens))

    @property
    def stream(self) -> np.ndarray:
        """All ids, one line after another."""
        return np.concatenate(self.ids)


def read_text(path: str | Path, model: Model, whole_lines: bool = False) -> Text:
    """Reads a text file, or several, named as `text_files.find_files` takes them.

    The tokens are those of a run that evaluates the text: by characters and bytes, white
    space and line ends count. Line ends are left out only if the vocabulary cannot have
    them.

    Args:
      path: names the file or files.
      model: the text is read as the model's own was.
      whole_lines: end the last line as the others, whether or not the file does.

    Raises:
      MissingFileError: there is no such file.
      InputError: it is empty, or is not UTF-8 (unless read by bytes), or has tokens that are
        not in the vocabulary, which has no `<unk>`.
    """
    vocabulary = model.vocabulary
    content, noun = _content(path, model), UNIT_NAMES[vocabulary.unit]
    if not (content.strip() if noun == "word" else content):
        raise InputError(f"{path}: holds no {noun}s; give a text with one sentence per line")
    lines = re.findall("[^\n]*\n|[^\n]+", content)
    if whole_lines:
        lines[-1] = lines[-1].removesuffix("\n") + "\n"
    if not _has_ends(vocabulary):
        lines = [line.removesuffix("\n") for line in lines]
    text = Text(lines, vocabulary)
    if text.unknown and UNK not in vocabulary.words:
        raise InputError(
            f"{path}: {len(text.unknown)} {noun}s are not in the model's vocabulary, which has no"
            f" {UNK}: {named(text.unknown)}; replace them"
        )
    return text


def _content(path: str | Path, model: Model) -> str:
    unit, entry = model.vocabulary.unit, PUBLISHED.get(model.config.corpus)
    pieces = find_files(path)
    if unit == "byte":
        return b"".join(block for piece in pieces for block in read_bytes(piece)).decode("latin-1")
    normalize_whitespace = entry is not None and entry.normalize_whitespace
    return "".join(
        block for piece in pieces for block in read_blocks(piece, unit, normalize_whitespace)
    )


def _has_ends(vocabulary: Vocabulary) -> bool:
    """Whether line ends are tokens; by characters, possibly rare ones, read as `<unk>`."""
    rare = vocabulary.unit == "char" and UNK in vocabulary.words
    return rare or line_end(vocabulary) is not None


def named(unknown: dict[str, int]) -> str:
    """The unknown tokens, on one line even if they are line ends."""
    return listed({token.translate(_ESCAPES): count for token, count in unknown.items()})


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
    end = line_end(models[0].vocabulary)
    if end is None:
        raise InputError("--independent: the model's text had no line ends; leave it out")
    (start,) = models[0].vocabulary.encode([end]).tolist()
    nll = [
        np.concatenate(
            lines_nll(
                model.params, text.ids, start, model.config.compute, expected_masks(model.config)
            )
        )
        for model in models
    ]
    return mixture_nll(np.stack(nll))


def records(text: Text, nll: np.ndarray, each: Each) -> list[dict[str, Any]]:
    """One record per sentence or token, with natural logarithms of probabilities."""
    unknown = set(text.unknown)
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
                    "unknown": sum(token in unknown for token in tokens),
                    "text": line,
                }
            )
            continue
        for position, (token, nats) in enumerate(zip(tokens, of_line.tolist(), strict=True), 1):
            log_probability = None if np.isnan(nats) else -nats
            result.append(
                {
                    "line": number,
                    "place": position,
                    "token": token,
                    "unknown": token in unknown,
                    "log_probability": log_probability,
                }
            )
    return result


def write_records(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes JSON lines or, if the path ends in `.tsv`, tab-separated values with a header."""
    if path.suffix == ".tsv":
        rows = [list(entries[0]), *(list(record.values()) for record in entries)]
        lines = ["\t".join(map(_cell, row)) for row in rows]
    else:
        lines = [json.dumps(record, ensure_ascii=False) for record in entries]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value).translate(_ESCAPES)
