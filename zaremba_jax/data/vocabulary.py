"""Text to tokens, tokens to ids, and back: by words, characters or bytes."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from zaremba_jax.config import UnitName
from zaremba_jax.data.units import EOS, UNITS, UNK, Unit, check_unit
from zaremba_jax.errors import InputError
from zaremba_jax.limits import whole_number

RARE_TO_UNK = (  # for a vocabulary of a training text
    f"give min_count=2 or a vocab_size, which turn rare words of the training text into {UNK}, or"
    f" replace rare ones with {UNK} in every file"
)
_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


def on_one_line(text: str) -> str:
    r"""The text with its tabs, line ends and backslashes written as \t, \n, \r and \\."""
    return text.translate(_ESCAPES)


def listed(counts: Mapping[str, int], most: int = 10) -> str:
    """The first `most` tokens on one line, each with its count if it occurs more than once."""
    named = [
        on_one_line(token) + (f" ({count} times)" if count > 1 else "")
        for token, count in list(counts.items())[:most]
    ]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def check_ids(ids: np.ndarray, size: int) -> None:
    """Raises InputError if these are no ids, or one is outside a vocabulary of this size."""
    if len(ids) == 0:
        return
    check_id_type(ids)
    if np.min(ids) < 0 or np.max(ids) >= size:
        raise InputError(
            f"ids from {np.min(ids)} to {np.max(ids)} for a vocabulary of {size}: encode the text"
            " with the model's own vocabulary"
        )


def check_id_type(ids: np.ndarray) -> None:
    """Raises InputError if these are not whole numbers in a row."""
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(
            f"ids of type {ids.dtype} and shape {ids.shape}: must be whole numbers in a row; encode"
            " the text with the model's own vocabulary"
        )


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The types of a training text; a type's id is its index in `words`.

    `unit` says what a type is: a word, a character or a byte; see `units`.

    >>> vocabulary = Vocabulary.from_tokens("a rose is a rose <eos>".split(), min_count=2)
    >>> vocabulary.words
    ('a', 'rose', '<eos>', '<unk>')
    >>> vocabulary.encode(vocabulary.tokenize("a daisy")).tolist()
    [0, 3]
    """

    words: tuple[str, ...]
    unit: UnitName = "word"

    @classmethod
    def from_tokens(
        cls, tokens: Iterable[str], unit: UnitName = "word", vocab_size: int = 0, min_count: int = 1
    ) -> "Vocabulary":
        """The types among `tokens`; arguments and errors as for `from_counts`."""
        return cls.from_counts(Counter(tokens), unit, vocab_size, min_count)

    @classmethod
    def from_counts(
        cls,
        counts: Mapping[str, int],
        unit: UnitName = "word",
        vocab_size: int = 0,
        min_count: int = 1,
    ) -> "Vocabulary":
        """The types of a text, most frequent first, ties in alphabetical order.

        Types that are left out count as `<unk>`, as if it stood in their place in the
        text; `<eos>` is never left out. With a limit there is an `<unk>` even if nothing is left
        out, for the words of other texts. Bytes are always all 256, in numerical order.

        Args:
          counts: how often each type occurs.
          unit: what a type is.
          vocab_size: how many types to keep, `<eos>` and `<unk>` among them; 0: no limit.
          min_count: types that occur fewer times than this are left out.

        Raises:
          InputError: there is no such unit, a limit is not a whole number, no type of a text that
            has some is left, `<eos>` and `<unk>` have no room, or bytes are to be left out.
        """
        check_unit(unit)
        vocab_size = whole_number("vocab_size", vocab_size, at_least=0)
        min_count = whole_number("min_count", min_count, at_least=1)
        if all_types := UNITS[unit].all_types:
            if vocab_size or min_count > 1:
                raise InputError(
                    f"vocab_size={vocab_size}, min_count={min_count}: a vocabulary of"
                    f" {UNITS[unit].noun}s has all {len(all_types)}; leave both out, or use the"
                    " unit word or char"
                )
            return cls(all_types, unit)
        words = sorted(counts.keys() - {EOS, UNK}, key=lambda word: (-counts[word], word))
        kept = [word for word in words if counts[word] >= min_count]
        special = {word: counts[word] for word in (EOS, UNK) if word in counts}
        if vocab_size or min_count > 1:
            special.setdefault(UNK, 0)
            kept = kept[: max(vocab_size - len(special), 0)] if vocab_size else kept
            special[UNK] += sum(counts[word] for word in words[len(kept) :])
        if 0 < vocab_size < len(special):
            raise InputError(
                f"vocab_size={vocab_size}: has no room for {' and '.join(special)}; give at least"
                f" {len(special) + bool(words)}, or 0 for no limit"
            )
        if words and not kept:
            raise InputError(
                f"vocab_size={vocab_size}, min_count={min_count}: leaves no {UNITS[unit].noun} of"
                " the training text, whose most frequent occurs"
                f" {counts[words[0]]} times; give a lower min_count, and a vocab_size of at least"
                f" {len(special) + 1}, or 0 for no limit"
            )
        kept_counts = {word: counts[word] for word in kept} | special
        return cls(tuple(sorted(kept_counts, key=lambda word: (-kept_counts[word], word))), unit)

    def with_marks(self, line_end: str | None = None, unknown: str | None = None) -> "Vocabulary":
        """The same types, the line's end and `<unk>` in place of those that mean it, like `</s>`.

        Raises:
          InputError: there is no such type, or one of that name already, or one means both.
        """
        if line_end is not None and line_end == unknown:
            raise InputError(
                f"{unknown}: cannot mean both {on_one_line(self._unit.line_end)} and {UNK}; give"
                " one of them"
            )
        names = {line_end: self._unit.line_end, unknown: UNK}
        names.pop(None, None)
        for word, mark in names.items():
            if word not in (mark, *self.words):
                raise InputError(
                    f"{word}: is not in the vocabulary; name the {self._unit.noun} for"
                    f" {on_one_line(mark)}"
                )
            if word != mark and mark in self.words:
                raise InputError(
                    f"{word}: the vocabulary has {on_one_line(mark)} itself; leave {word} out"
                )
        return dataclasses.replace(self, words=tuple(names.get(word, word) for word in self.words))

    def __len__(self) -> int:
        return len(self.words)

    @property
    def _unit(self) -> Unit:
        return UNITS[self.unit]

    @functools.cached_property
    def _ids(self) -> "_Ids":
        return _Ids((word, number) for number, word in enumerate(self.words))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the types and their order; if it is equal, equal ids mean equal tokens."""
        return hashlib.sha256(self._unit.to_hash(self.words).encode()).hexdigest()

    @property
    def line_end(self) -> str | None:
        """The token that ends a line, if there is one."""
        end = self._unit.line_end
        return end if end in self._ids else None

    @property
    def reads_line_ends(self) -> bool:
        """Whether the ends of lines are tokens, or are read as `<unk>` because they are rare."""
        may_be_rare = self._unit.line_end != EOS and UNK in self._ids  # `<eos>` is never left out
        return may_be_rare or self.line_end is not None

    def unknown(self, tokens: Iterable[str]) -> dict[str, int]:
        """The tokens that are no types, most frequent first, and how often each occurs."""
        return dict(Counter(token for token in tokens if token not in self._ids).most_common())

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as for `units.Unit.tokenize`."""
        return self._unit.tokenize(text)

    def encode(
        self, tokens: Iterable[str], source: str = "text", remedy: str = RARE_TO_UNK
    ) -> np.ndarray:
        """The ids of `tokens`, int32 [N]; one outside the vocabulary becomes `<unk>`.

        Raises:
          InputError: a token is outside a vocabulary without `<unk>`, or `tokens` is bytes, or a
            string although characters are not its tokens. The message starts with `source`, and
            ends with `remedy` if the vocabulary lacks `<unk>`.
        """
        if isinstance(tokens, bytes) or (isinstance(tokens, str) and not self._unit.text_is_tokens):
            decoded = "decode it and " if isinstance(tokens, bytes) else ""
            raise InputError(
                f"{source}: is a text, not a list of {self._unit.noun}s; {decoded}split it"
                " with `tokenize`"
            )
        try:
            return np.fromiter(map(self._ids.__getitem__, tokens), np.int32)
        except KeyError as missing:
            raise InputError(
                f"{source}: the {self._unit.noun} {missing} is not in the vocabulary, which has no"
                f" {UNK}; {remedy}"
            ) from None

    def encode_blocks(
        self, blocks: Iterable[str], source: str, remedy: str
    ) -> Iterator[np.ndarray]:
        """Yields the ids of texts as `units.Unit.read` yields them; errors as for `encode`."""
        ids_of = functools.partial(self.encode, source=source, remedy=remedy)
        return map(self._unit.encoder(self.words, ids_of), blocks)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of `ids`.

        Raises:
          InputError: as for `check_ids`.
        """
        numbers = np.array([*ids])
        check_ids(numbers, len(self.words))
        return [self.words[number] for number in numbers]

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of `ids`, which `tokenize` splits into the same tokens again.

        Words are separated by one space, and a line ends at each `<eos>`. Bytes that are
        not UTF-8 become U+FFFD; `<unk>` stays as it is.
        """
        return self._unit.join(self.decode(ids))


class _Ids(dict[str, int]):
    """The ids of a vocabulary's types; all others get that of `<unk>`, if there is one."""

    def __missing__(self, word: str) -> int:
        if UNK in self:
            return self[UNK]
        raise KeyError(word)
