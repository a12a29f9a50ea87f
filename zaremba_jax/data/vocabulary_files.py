"""Vocabularies that come from files: a list of words, one a line or as JSON."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaremba_jax.config import UnitName
from zaremba_jax.data.text_files import Piece, decode
from zaremba_jax.data.units import UNITS, UNK, check_unit
from zaremba_jax.data.vocabulary import Vocabulary, listed, on_one_line
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import parse_json


def read_vocabulary(path: str | Path, unit: UnitName = "word") -> Vocabulary:
    """Reads types in the order of their ids: one a line, or a JSON list, or JSON with their ids.

    Raises:
      OSError: it cannot be read.
      InputError: there is no such unit, or it is none of these, or not UTF-8, a type is there
        twice, or the ids of N types are not 0 to N - 1.
    """
    check_unit(unit)
    path = Path(path)
    text = "".join(decode(Piece(path)))
    try:
        return vocabulary_from_dict({"words": _listed_types(path, text, unit), "unit": unit})
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: is not a vocabulary ({error}); give distinct {UNITS[unit].noun}s, one a line,"
            " or as JSON with their ids or in the order of their ids"
        ) from None


def read_word_list(path: str | Path, unit: UnitName = "word") -> Vocabulary:
    """The vocabulary of a file, for a text whose other words are to become `<unk>`.

    Raises:
      OSError, InputError: as for `read_vocabulary`; or it lacks `<unk>` or the end of a
        line, or has what is no single word, or the unit has a vocabulary of its own.
    """
    check_unit(unit)
    described = UNITS[unit]
    if described.all_types:
        raise InputError(
            f"{path}: a vocabulary of {described.noun}s has all {len(described.all_types)}; leave"
            " it out"
        )
    words = read_vocabulary(path, unit)
    marks = (described.line_end, UNK)
    if missing := [on_one_line(mark) for mark in marks if mark not in words.words]:
        raise InputError(
            f"{path}: has no {' and no '.join(missing)}, for the ends of lines and for all other"
            f" {described.noun}s; add what is missing, or rename what means it, such as </s>"
        )
    never = Counter(w for w in words.words if w not in marks and described.split(w) != [w])
    if never:
        raise InputError(
            f"{path}: holds what no text has as one {described.noun}: {listed(never)}; remove it"
        )
    return words


def vocabulary_from_dict(record: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that a record describes.

    Raises:
      InputError: its words are not a list of distinct words, or there is no such unit.
    """
    words, unit = record["words"], record["unit"]
    check_unit(unit)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("the vocabulary is not a list of words")
    if not words:
        raise InputError("the vocabulary is empty")
    for word in words:
        if not _is_text(word):
            raise InputError(f"{word!r} is not a text: a surrogate stands alone in it")
    if len(set(words)) < len(words):
        twice = {word: count for word, count in Counter(words).items() if count > 1}
        raise InputError(f"the vocabulary repeats {listed(twice)}")
    return Vocabulary(tuple(words), unit)


def _is_text(word: str) -> bool:
    """Whether a string can be encoded; JSON can have halves of pairs of surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed_types(path: Path, text: str, unit: UnitName) -> Any:
    """What a JSON text lists, as it is; else the lines that are not empty."""
    if path.suffix == ".json" or text.lstrip().startswith(("[", "{")):
        try:
            content = parse_json(text)
        except ValueError:
            if path.suffix == ".json":
                raise
        else:
            return _in_order_of_ids(content)
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    if unit != "word":
        return lines
    words = [line.strip() for line in lines if line.strip()]
    if several := [word for word in words if len(word.split()) > 1]:
        raise InputError(f"the line {several[0]!r} has more than a word")
    return words


def _in_order_of_ids(words: Any) -> Any:
    """The words that are mapped to their ids, in order; anything but a mapping as it is."""
    if not isinstance(words, dict):
        return words
    if sorted(words.values()) != list(range(len(words))):
        raise InputError(f"its ids are not 0 to {len(words) - 1}, each once")
    return sorted(words, key=words.__getitem__)
