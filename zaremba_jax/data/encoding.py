"""Text files to ids, once: counted and encoded block by block, and kept in a cache.

However large a text is, only a block of it and its types are in memory.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch

from zaremba_jax.config import UnitName
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.partial_folders import partial_folder
from zaremba_jax.data.text_files import Piece, content_hash, cut_at_lines, find_files
from zaremba_jax.data.units import EOS, UNITS, UNK, check_unit
from zaremba_jax.data.vocabulary import RARE_TO_UNK, Vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.limits import whole_number
from zaremba_jax.whole_files import naming

SPLITS = ("train", "valid", "test")
_VERSION = 3  # of the cache format
_RECORD = "record.json"  # written last
_REMEDY = f"replace it in the text, or take a model or a list that has {UNK}"

Pieces = Sequence[Piece]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What determines the ids of a text: its unit, what becomes `<unk>`, how lines are read.

    `vocab_size` and `min_count` are as for `Vocabulary.from_counts`, `normalize_whitespace` as for
    `units.Unit.read`. A `vocabulary` takes the place of the training text's.

    Raises:
      InputError: there is no such unit, a number is outside its limits, or a vocabulary is given
        that is of another unit, cannot read the ends of lines, is to be limited, or does not have
        all bytes in their order.
    """

    unit: UnitName = "word"
    vocab_size: int = 0
    min_count: int = 1
    normalize_whitespace: bool = False
    vocabulary: Vocabulary | None = None

    def __post_init__(self):
        check_unit(self.unit)
        for name, least in (("vocab_size", 0), ("min_count", 1)):
            value = whole_number(name, getattr(self, name), at_least=least)
            object.__setattr__(self, name, value)
            if self.vocabulary is not None and value > least:
                raise InputError(
                    f"{name}={value}: a vocabulary is given, which limits itself; leave it out"
                )
        if self.vocabulary is not None:
            self._check_vocabulary(self.vocabulary)

    def _check_vocabulary(self, vocabulary: Vocabulary) -> None:
        given, wanted = UNITS[vocabulary.unit], UNITS[self.unit]
        if given is not wanted:
            raise InputError(
                f"the given vocabulary is of {given.noun}s, but the text is read by"
                f" {wanted.noun}s; give unit={given.name}, or another text"
            )
        if wanted.all_types and vocabulary.words != wanted.all_types:
            raise InputError(
                f"the given vocabulary does not have all {len(wanted.all_types)} {wanted.noun}s in"
                " their order, which are the ids of such a text; leave it out"
            )
        if not vocabulary.reads_line_ends and given.name == "word":
            raise InputError(
                f"the given vocabulary has no {EOS}, which each line end becomes; name the word"
                " that means it where the vocabulary comes from"
            )

    @property
    def key(self) -> tuple[str | int | None, ...]:
        """What tells encodings apart."""
        given = None if self.vocabulary is None else self.vocabulary.fingerprint
        return self.unit, self.vocab_size, self.min_count, self.normalize_whitespace, given


def default_cache_dir() -> Path:
    """Where texts are kept if no other folder is given."""
    return Path(pooch.os_cache("zaremba_jax"))


def read_corpus(
    name: str,
    train: str | Path,
    valid: str | Path | float,
    test: str | Path | float,
    encoding: Encoding = Encoding(),
    cache_dir: str | Path | None = None,
) -> Corpus:
    """Reads three texts, each in one or more files, as for `text_files.find_files`.

    A number in place of the validation or test text takes this fraction of the training text, in
    whole lines from its end, where the test text comes last.

    Raises:
      MissingFileError: a file is missing.
      InputError: a file is named twice, damaged, not UTF-8 or changed meanwhile, a text is empty or
        has tokens outside a vocabulary without `<unk>`, or fractions leave a text without a line.
      OSError: the cache cannot be written.
    """
    given = dict(zip(SPLITS, (train, valid, test), strict=True))
    texts = {split: find_files(x) for split, x in given.items() if isinstance(x, str | Path)}
    fractions = {split: x for split, x in given.items() if not isinstance(x, str | Path)}
    if fractions:
        texts |= _cut(str(train), texts["train"], fractions)
    return encode(name, [texts[split] for split in SPLITS], encoding, cache_dir)


def _cut(name: str, text: Pieces, fractions: Mapping[str, float]) -> dict[str, list[Piece]]:
    """The parts of the training text: what is left of it, and a text for each fraction."""
    shown = ", ".join(f"{split}={share}" for split, share in fractions.items())
    if not (all(share > 0 for share in fractions.values()) and sum(fractions.values()) < 1):
        raise InputError(f"{shown}: must be above 0, and below 1 together")
    parts = cut_at_lines(text, list(fractions.values()))
    texts = dict(zip(("train", *fractions), parts, strict=True))
    for split, part in texts.items():
        if not part:
            raise InputError(
                f"{name}: {shown} leaves the {split} text without a line; give other fractions, or"
                " a text of more lines, each with a line feed at its end"
            )
    return texts


def encode(
    name: str, texts: Sequence[Pieces], encoding: Encoding, cache_dir: str | Path | None = None
) -> Corpus:
    """The corpus of three texts with the vocabulary of the first, memory-mapped.

    Args:
      name: of the corpus.
      texts: the files of the training, validation and test text, in order.
      encoding: what determines their ids.
      cache_dir: a folder that keeps the ids of exactly these bytes under this encoding for
        the next time; None: the user's.

    Raises:
      InputError, OSError: as for `read_corpus`.
    """
    hashes = _hashes(texts)
    folder = Path(cache_dir or default_cache_dir()) / "encoded" / _key(texts, encoding, hashes)
    corpus = _load(name, folder)
    if corpus is None:
        _write(texts, encoding, folder, hashes)
        corpus = _load(name, folder)
    if corpus is None:
        raise OSError(f"{folder}: what was just written cannot be read; name another cache_dir")
    return corpus


def _hashes(texts: Sequence[Pieces]) -> dict[Piece, str]:
    """A hash of each file, however many its pieces."""
    files = {_whole(piece) for text in texts for piece in text}
    return {file: content_hash(file) for file in files}


def _whole(piece: Piece) -> Piece:
    return dataclasses.replace(piece, start=0, stop=None)


def _key(texts: Sequence[Pieces], encoding: Encoding, hashes: Mapping[Piece, str]) -> str:
    """Tells contents and encodings apart."""
    described = [
        [(hashes[_whole(piece)], piece.start, piece.stop) for piece in text] for text in texts
    ]
    listed = json.dumps([_VERSION, encoding.key, described])
    return hashlib.sha256(listed.encode()).hexdigest()


def _load(name: str, folder: Path) -> Corpus | None:
    """The cached corpus; None if it is missing, incomplete or not what was written."""
    try:
        record = read_json_object(folder / _RECORD)
        corpus = _mapped(name, folder, record)
        return corpus if record["fingerprint"] == corpus.fingerprint else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _mapped(name: str, folder: Path, record: Mapping[str, Any]) -> Corpus:
    train, valid, test = (
        np.memmap(folder / split, record["dtype"], "r", shape=(record["tokens"][split],))
        for split in SPLITS
    )
    return Corpus(name, Vocabulary(tuple(record["words"]), record["unit"]), train, valid, test)


def _write(
    texts: Sequence[Pieces], encoding: Encoding, folder: Path, hashes: Mapping[Piece, str]
) -> None:
    """Counts the training text, encodes all three, and moves them into place together."""
    with partial_folder(folder.parent) as partial, naming(folder.parent):
        vocabulary = _count(texts[0], encoding)
        dtype = _smallest_type(len(vocabulary))
        tokens = {
            name: _write_ids(partial / name, text, vocabulary, encoding, dtype)
            for name, text in zip(SPLITS, texts, strict=True)
        }
        record = {
            "unit": vocabulary.unit,
            "dtype": dtype.str,
            "tokens": tokens,
            "words": vocabulary.words,
        }
        record["fingerprint"] = _mapped("", partial, record).fingerprint
        (partial / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        _check_unchanged(hashes)
        _move(partial, folder)


def _check_unchanged(hashes: Mapping[Piece, str]) -> None:
    """Raises InputError if a file is not what it was: its ids belong to no entry of the cache."""
    for file, before in hashes.items():
        if content_hash(file) != before:
            raise InputError(f"{file}: changed while it was read; give the command again")


def _move(partial: Path, folder: Path) -> None:
    """Makes a complete folder an entry of the cache, unless another process was faster."""
    if folder.exists() and _load("", folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(partial, folder)
    except OSError:
        if not (folder / _RECORD).exists():  # else it wrote the same
            raise


def _smallest_type(types: int) -> np.dtype:
    return np.dtype("<u1" if types <= 2**8 else "<u2" if types <= 2**16 else "<i4")


def _read(text: Pieces, encoding: Encoding) -> Iterator[str]:
    for piece in text:
        yield from UNITS[encoding.unit].read(piece, encoding.normalize_whitespace)


def _count(text: Pieces, encoding: Encoding) -> Vocabulary:
    """The vocabulary of a text, unless another is given."""
    if encoding.vocabulary is not None:
        return encoding.vocabulary
    counts = UNITS[encoding.unit].count(_read(text, encoding))
    if not counts.keys() - {EOS}:
        raise _nothing_in(text, encoding)
    return Vocabulary.from_counts(counts, encoding.unit, encoding.vocab_size, encoding.min_count)


def _write_ids(
    path: Path, text: Pieces, vocabulary: Vocabulary, encoding: Encoding, dtype: np.dtype
) -> int:
    """Writes the ids of a text and returns how many there are."""
    count, has_text = 0, False
    remedy = RARE_TO_UNK if encoding.vocabulary is None else _REMEDY
    line_end = vocabulary.encode([EOS])[0] if EOS in vocabulary.words else -1
    with path.open("wb") as file:
        for piece in text:
            blocks = _read([piece], encoding)
            for ids in vocabulary.encode_blocks(blocks, str(piece), remedy):
                file.write(ids.astype(dtype).tobytes())
                count += len(ids)
                has_text = has_text or bool((ids != line_end).any())
    if not has_text:
        raise _nothing_in(text, encoding)
    return count


def _nothing_in(text: Pieces, encoding: Encoding) -> InputError:
    more = f" and {len(text) - 1} more" if len(text) > 1 else ""
    return InputError(
        f"{text[0]}{more}: holds no {UNITS[encoding.unit].noun}s; give a text with one sentence per"
        " line"
    )
