"""What a token is: a word, a character or a byte. Everything that depends on it stands here."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from zaremba_jax.config import UnitName
from zaremba_jax.data.text_files import (
    Piece,
    decode,
    read_bytes,
    read_normalized_lines,
    read_whole_words,
)
from zaremba_jax.errors import InputError

EOS = "<eos>"
UNK = "<unk>"
BYTES = tuple(map(chr, range(256)))
_WRITTEN_END = re.compile(rf"(?<!\S){EOS}[^\S\n]*\n")
_LONGEST_END = 32  # characters from a written end to the line's, within which it is found
_CODES = 0x110000  # code points of Unicode
IdsOf = Callable[[Iterable[str]], np.ndarray]  # from tokens to their ids


@dataclasses.dataclass(frozen=True)
class Unit:
    """How text becomes tokens and tokens become text; what a kind does differently, it overrides.

    Strings are *spelled* where each byte of a unit is to be one character: `read` yields such
    strings and `split` takes them. By words and by characters every text is spelled as it is; by
    bytes, each byte of its UTF-8 encoding is the character with the same number.

    Attributes:
      name: as in a configuration.
      noun: as in a sentence.
      line_end: the token that ends a line.
      all_types: the whole vocabulary, if it does not depend on the text.
      text_is_tokens: whether a string is the sequence of its own tokens.
      reported_in_bits: whether perplexities are reported in bits per unit, too.
    """

    name: UnitName
    noun: str
    line_end: str
    all_types: tuple[str, ...] | None = None
    text_is_tokens: bool = False
    reported_in_bits: bool = True

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text.

        By words: what white space separates, and `<eos>` for each line end; a last line without a
        line end gets none, so that the next part of the text can continue it. By characters: line
        ends and spaces are tokens too. By bytes: those of its UTF-8 encoding, each written as the
        character with the same number. The tokens of consecutive parts add up to those of the
        whole, provided that no word is cut.
        """
        return self.split(self.spell(text))

    def spell(self, text: str) -> str:
        """The text, with one character for each byte if it is cut into bytes."""
        return text

    def unspell(self, spelled: str) -> str:
        """The text that was spelled; bytes that are not UTF-8 become U+FFFD."""
        return spelled

    def split(self, spelled: str) -> list[str]:
        """The tokens of a spelled text."""
        return list(spelled)

    def join(self, tokens: Iterable[str]) -> str:
        """A text with these tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.unspell("".join(tokens))

    def read(self, piece: Piece, normalize_whitespace: bool = False) -> Iterator[str]:
        """Yields a file's spelled text in blocks that cut no token.

        By words or with `normalize_whitespace`, any line end becomes a line feed, and the last
        line has one too.

        Args:
          piece: the file.
          normalize_whitespace: drop white space at both ends of lines, and all but one space
            between words; bytes stay as they are.

        Raises:
          InputError: the file is damaged, or is not UTF-8 (unless read by bytes), or a line of
            words ends in `<eos>`, which its end would repeat.
        """
        return read_normalized_lines(piece) if normalize_whitespace else decode(piece)

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        """How often each type occurs in spelled texts; bytes count once each, unread."""
        counts = Counter()
        for block in blocks:
            counts.update(self.split(block))
        return counts

    def encoder(self, words: Sequence[str], ids_of: IdsOf) -> Callable[[str], np.ndarray]:
        """A function from a spelled text that cuts no token to its ids, integers [tokens].

        Args:
          words: the types in the order of their ids.
          ids_of: gives the ids of tokens, and raises an error for an unknown one.
        """
        return lambda block: ids_of(self.split(block))

    def to_hash(self, words: Sequence[str]) -> str:
        """What the fingerprint of a vocabulary is a hash of: the unit and the types."""
        return json.dumps([self.name, *words])


class _Words(Unit):
    def split(self, spelled: str) -> list[str]:
        return spelled.replace("\n", f" {EOS} ").split()

    def join(self, tokens: Iterable[str]) -> str:
        spaced = " ".join("\n" if word == EOS else word for word in tokens)
        return spaced.replace(" \n", "\n").replace("\n ", "\n")

    def read(self, piece: Piece, normalize_whitespace: bool = False) -> Iterator[str]:
        blocks = read_normalized_lines(piece) if normalize_whitespace else read_whole_words(piece)
        return _without_written_ends(blocks, piece)

    def to_hash(self, words: Sequence[str]) -> str:
        return "\n".join(words)  # without the unit: older files have such fingerprints


def _without_written_ends(blocks: Iterable[str], piece: Piece) -> Iterator[str]:
    """The same blocks; errors as for `Unit.read`."""
    before = "\n"
    for block in blocks:
        seen = before + block
        # From 1: the first character tells only whether a word begins after it.
        if EOS in seen and (found := _WRITTEN_END.search(seen, 1)):
            line = seen[seen.rfind("\n", 0, found.start()) + 1 : found.start()]
            raise InputError(
                f"{piece}: the line '{line[-60:]}{EOS}' ends in {EOS}, which its end becomes by"
                f" itself, so that there would be two; remove {EOS} from the ends of lines"
            )
        before = seen[-_LONGEST_END - 1 :]
        yield block


class _Characters(Unit):
    """Counts and encodes by code points, many times as fast as by strings."""

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        totals = np.zeros(_CODES, np.int64)
        for block in blocks:
            counts = np.bincount(_codes(block))
            totals[: len(counts)] += counts
        return Counter({chr(code): int(totals[code]) for code in np.flatnonzero(totals)})

    def encoder(self, words: Sequence[str], ids_of: IdsOf) -> Callable[[str], np.ndarray]:
        table = np.full(_CODES, words.index(UNK) if UNK in words else -1, np.int32)
        for number, character in enumerate(words):
            if len(character) == 1:
                table[ord(character)] = number

        def encode(block: str) -> np.ndarray:
            ids = table[_codes(block)]
            return ids_of(block) if len(ids) and ids.min() < 0 else ids

        return encode


class _Bytes(Unit):
    def spell(self, text: str) -> str:
        # An argument of a program has the bytes that are no UTF-8 as such surrogates.
        return text.encode(errors="surrogateescape").decode("latin-1")

    def unspell(self, spelled: str) -> str:
        return spelled.encode("latin-1").decode(errors="replace")

    def read(self, piece: Piece, normalize_whitespace: bool = False) -> Iterator[str]:
        return (block.decode("latin-1") for block in read_bytes(piece))

    def count(self, blocks: Iterable[str]) -> Counter[str]:
        return Counter(BYTES)

    def encoder(self, words: Sequence[str], ids_of: IdsOf) -> Callable[[str], np.ndarray]:
        return lambda block: np.frombuffer(block.encode("latin-1"), np.uint8)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


UNITS: dict[UnitName, Unit] = {
    "word": _Words("word", "word", line_end=EOS, reported_in_bits=False),
    "char": _Characters("char", "character", line_end="\n", text_is_tokens=True),
    "byte": _Bytes("byte", "byte", line_end="\n", all_types=BYTES),
}


def check_unit(name: str) -> None:
    """Raises InputError if there is no such unit."""
    if name not in UNITS:
        raise InputError(f"unit={name!r}: must be one of {', '.join(UNITS)}")
