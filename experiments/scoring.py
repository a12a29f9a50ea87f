"""What models give to the tokens of a text: its records, by sentence or by token."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.models import line_end, listed, unknown_tokens
from experiments.workdir import write_text
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.exported import Model
from zaremba_jax.lines import lines_nll
from zaremba_jax.regularizers import expected_masks
from zaremba_jax.text_files import find_files, read_blocks
from zaremba_jax.vocabulary import NOUNS, UNK, Vocabulary

Each = Literal["sentence", "token"]
Reader = Callable[[Model, np.ndarray], np.ndarray]  # nats of every token but the first
_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text, a sentence a line, as a vocabulary has it."""

    lines: list[str]
    tokens: list[list[str]]  # of each line, with its end where the vocabulary has line ends
    ids: list[np.ndarray]
    unknown: dict[str, int]  # how often what the vocabulary lacks occurs

    @property
    def stream(self) -> np.ndarray:
        """All ids, one line after another."""
        return np.concatenate(self.ids)


def read_text(path: str | Path, vocabulary: Vocabulary) -> Text:
    """Reads a text file, or several that are named as `text_files.find_files` takes them.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is empty or not UTF-8, or has tokens that the vocabulary lacks, and
        that has no `<unk>`.
    """
    content = "".join(block for piece in find_files(path) for block in read_blocks(piece, "word"))
    if not content.strip():
        raise ValueError(f"{path}: holds no words; give a text with one sentence a line")
    lines = content.removesuffix("\n").split("\n")
    end = "" if line_end(vocabulary) is None else "\n"
    tokens = [vocabulary.tokens(line + end) for line in lines]
    unknown = unknown_tokens(vocabulary, [token for line in tokens for token in line])
    if unknown and UNK not in vocabulary.words:
        raise ValueError(
            f"{path}: {len(unknown)} {NOUNS[vocabulary.unit]}s are not the model's, which has no"
            f" {UNK}: {listed(unknown)}; replace them"
        )
    return Text(lines, tokens, [vocabulary.encode(line) for line in tokens], unknown)


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
    ends = np.cumsum([len(line) for line in text.tokens])
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
