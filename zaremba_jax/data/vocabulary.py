"""Text to tokens, tokens to ids, and back: by words, characters or bytes."""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import get_args

import numpy as np

from zaremba_jax.config import UnitName
from zaremba_jax.errors import InputError

EOS = "<eos>"
UNK = "<unk>"
UNIT_NAMES: dict[UnitName, str] = {"word": "word", "char": "character", "byte": "byte"}
BYTES = tuple(map(chr, range(256)))


def check_unit(unit: str) -> None:
    """Raises ValueError if there is no such unit."""
    if unit not in get_args(UnitName):
        raise InputError(f"unit={unit!r}: must be one of {', '.join(get_args(UnitName))}")


def tokenize(text: str, unit: UnitName = "word") -> list[str]:
    """The tokens of a text.

    By words: what white space separates, and `<eos>` for each line end; a last line without a
    line end gets none, so that the next part of the text can continue it. By characters: line
    ends and spaces are tokens too. By bytes: those of its UTF-8 encoding, each written as the
    character with the same number. The tokens of consecutive parts add up to those of the
    whole, provided that no word is cut.
    """
    if unit == "word":
        return text.replace("\n", f" {EOS} ").split()
    return list(text if unit == "char" else text.encode().decode("latin-1"))


def check_ids(ids: np.ndarray, size: int) -> None:
    """Raises ValueError if an id is outside a vocabulary of this size."""
    if len(ids) and (np.min(ids) < 0 or np.max(ids) >= size):
        raise InputError(
            f"ids from {np.min(ids)} to {np.max(ids)} for a vocabulary of {size}: encode the text"
            " with the model's own vocabulary"
        )


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The types of a training text; a type's id is its index in `words`.

    `unit` says what a type is: a word, a character or a byte, as `tokenize` gives them.
    """

    words: tuple[str, ...]
    unit: UnitName = "word"

    @classmethod
    def from_tokens(
        cls, tokens: Iterable[str], unit: UnitName = "word", size: int = 0, min_count: int = 1
    ) -> "Vocabulary":
        """The types among `tokens`; arguments and errors as for `from_counts`."""
        return cls.from_counts(Counter(tokens), unit, size, min_count)

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], unit: UnitName = "word", size: int = 0, min_count: int = 1
    ) -> "Vocabulary":
        """The types of a text, most frequent first, ties in alphabetical order.

        Types that are left out count as `<unk>`, as if it stood in their place in the
        text; `<eos>` is never left out. Bytes are always all 256, in numerical order.

        Args:
          counts: how often each type occurs.
          unit: what a type is.
          size: how many of the most frequent types to keep, counting `<unk>` if any is left
            out; 0: no limit.
          min_count: types that occur fewer times than this are left out.

        Raises:
          InputError: no type of a text that has some is left, or bytes are to be left out.
        """
        if unit == "byte":
            if size or min_count > 1:
                raise InputError(
                    f"vocab_size={size}, min_count={min_count}: a vocabulary of bytes has all 256;"
                    " leave both out, or use the unit word or char"
                )
            return cls(BYTES, unit)
        words = sorted(counts.keys() - {EOS, UNK}, key=lambda word: (-counts[word], word))
        kept = [word for word in words if counts[word] >= min_count]
        special = {word: counts[word] for word in (EOS, UNK) if word in counts}
        if len(kept) < len(words) or 0 < size < len(words) + len(special):
            special.setdefault(UNK, 0)
            kept = kept[: max(size - len(special), 0)] if size else kept
            special[UNK] += sum(counts[word] for word in words[len(kept) :])
        if words and not kept:
            raise InputError(
                f"vocab_size={size}, min_count={min_count}: leaves no {UNIT_NAMES[unit]} of the"
                f" training text, whose most frequent occurs {counts[words[0]]} times; give a lower"
                f" min_count, and a vocab_size of at least {len(special) + 1}, or 0 for no limit"
            )
        kept_counts = {word: counts[word] for word in kept} | special
        return cls(tuple(sorted(kept_counts, key=lambda word: (-kept_counts[word], word))), unit)

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def _ids(self) -> "_Ids":
        return _Ids((word, number) for number, word in enumerate(self.words))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the types and their order; if it is equal, equal ids mean equal tokens."""
        listed = "\n".join(self.words)
        if self.unit != "word":  # words keep the hash from before there were other units
            listed = json.dumps([self.unit, *self.words])
        return hashlib.sha256(listed.encode()).hexdigest()

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text in this vocabulary's unit, as the function `tokenize` gives them."""
        return tokenize(text, self.unit)

    def encode(self, tokens: Iterable[str], source: str = "text") -> np.ndarray:
        """The ids of `tokens`, int32 [N]; one outside the vocabulary becomes `<unk>`.

        Raises:
          InputError: a token is outside a vocabulary without `<unk>`, or `tokens` is bytes, or a
            string although the unit is not `char`; the message starts with `source`.
        """
        if isinstance(tokens, bytes) or (isinstance(tokens, str) and self.unit != "char"):
            decoded = "decode it and " if isinstance(tokens, bytes) else ""
            raise InputError(
                f"{source}: is a text, not a list of {UNIT_NAMES[self.unit]}s; {decoded}split it"
                " with `tokenize`"
            )
        try:
            return np.fromiter(map(self._ids.__getitem__, tokens), np.int32)
        except KeyError as missing:
            raise InputError(
                f"{source}: the {UNIT_NAMES[self.unit]} {missing} is not in the training text,"
                f" which has no {UNK}; give min_count=2 or a vocab_size, which turn rare ones into"
                f" {UNK}, or replace rare ones with {UNK} in all three files"
            ) from None

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of `ids`."""
        return [self.words[number] for number in ids]

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of `ids`, which `tokenize` splits into the same tokens again.

        Words are separated by one space, and a line ends at each `<eos>`. Bytes that are
        not UTF-8 become U+FFFD; `<unk>` stays as it is.
        """
        tokens = self.decode(ids)
        if self.unit == "byte":
            return "".join(tokens).encode("latin-1").decode(errors="replace")
        if self.unit == "char":
            return "".join(tokens)
        spaced = " ".join("\n" if word == EOS else word for word in tokens)
        return spaced.replace(" \n", "\n").replace("\n ", "\n")


class _Ids(dict[str, int]):
    """The ids of a vocabulary's types; all others get that of `<unk>`, if there is one."""

    def __missing__(self, word: str) -> int:
        if UNK in self:
            return self[UNK]
        raise KeyError(word)
