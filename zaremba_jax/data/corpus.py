"""Texts as ids, cut into parallel streams and windows. NumPy only."""

import dataclasses
import functools
import hashlib
import mmap
from collections.abc import Iterator, Sequence

import numpy as np

from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError

_BLOCK = 2**20  # ids in memory at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Three splits as ids, integers [N] each, under the training split's vocabulary.

    Splits read from files are memory-mapped, in the smallest type that holds the ids.
    `floor_perplexity` is the test split's perplexity under the source that generated the
    text, if that is known.
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    floor_perplexity: float | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the vocabulary and of the three splits."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for ids in (self.train, self.valid, self.test):
            digest.update(len(ids).to_bytes(8, "little"))
            for block in blocks(ids):
                digest.update(block.astype("<i4").tobytes())
        return digest.hexdigest()


def blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the ids in order, in blocks of bounded size."""
    for start in range(0, len(ids), _BLOCK):
        yield np.array(remapped(ids)[start : start + _BLOCK])


def remapped(ids: np.ndarray) -> np.ndarray:
    """The same ids; memory-mapped ones are mapped again.

    Pages read through a map count as the process's memory for as long as the map exists.
    """
    if isinstance(ids, np.memmap) and isinstance(ids.base, mmap.mmap) and ids.filename:
        if ids.mode == "c":
            return ids  # may differ from the file
        return np.memmap(ids.filename, ids.dtype, "r", ids.offset, ids.shape)
    return ids  # NumPy does not tell the offset of a slice of a map


def make_corpus(
    name: str,
    train: Sequence[str],
    valid: Sequence[str],
    test: Sequence[str],
) -> Corpus:
    """Encodes three lists of tokens with the vocabulary of the first.

    Raises:
      InputError: as for `Vocabulary.encode`.
    """
    vocabulary = Vocabulary.from_tokens(train)
    return Corpus(
        name,
        vocabulary,
        vocabulary.encode(train),
        vocabulary.encode(valid, "validation text"),
        vocabulary.encode(test, "test text"),
    )


def streams(ids: np.ndarray, batch_size: int) -> np.ndarray:
    """Cuts `ids` [N] into contiguous streams, [N // batch_size, batch_size]; drops the tail."""
    length = len(ids) // batch_size
    return ids[: length * batch_size].reshape(batch_size, length).T


def ends(place: slice, length: int) -> tuple[int, int]:
    """The first of `length` positions that a slice takes, and the one after the last.

    Raises:
      TypeError: it is not a slice of consecutive positions.
    """
    if not isinstance(place, slice) or place.step not in (None, 1):
        raise TypeError(f"{place}: take windows in a row, as in [first:last]")
    first, last, _ = place.indices(length)
    return first, max(first, last)


@dataclasses.dataclass(frozen=True, eq=False)
class TextWindows:
    """The windows of an epoch in text order, cut on demand.

    A slice `[first:last]` is int32 [last - first, unroll + 1, batch_size]. `window[:-1]`
    are the inputs of a window and `window[1:]` their targets, so a window's last target
    is the first input of the next and every (token, next token) pair of the streams
    appears exactly once. A short last window is dropped.

    Raises:
      InputError: a size is below 1, or the ids do not fill one window.
    """

    ids: np.ndarray
    batch_size: int
    unroll: int

    def __post_init__(self):
        for name in ("batch_size", "unroll"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: must be at least 1")
        if len(self) < 1:
            raise InputError(
                f"{len(self.ids)} training tokens cannot fill {self.batch_size} streams of"
                f" {self.unroll} + 1; give at least {self.batch_size * (self.unroll + 1)} tokens,"
                " or lower batch_size or unroll"
            )

    def __len__(self) -> int:
        return max(len(self.ids) // self.batch_size - 1, 0) // self.unroll

    @property
    def nbytes(self) -> int:
        """The size of all windows in bytes."""
        return 4 * len(self) * (self.unroll + 1) * self.batch_size

    def __getitem__(self, index: slice) -> np.ndarray:
        first, last = ends(index, len(self))
        columns = streams(remapped(self.ids), self.batch_size)
        tokens = columns[first * self.unroll : last * self.unroll + 1].astype(np.int32)
        starts = self.unroll * np.arange(last - first)
        return tokens[starts[:, None] + np.arange(self.unroll + 1)[None, :]]


def windows(ids: np.ndarray, batch_size: int, unroll: int) -> np.ndarray:
    """All windows of an epoch in one array, int32 [windows, unroll + 1, batch_size].

    Layout and errors are as for `TextWindows`.
    """
    return TextWindows(ids, batch_size, unroll)[:]


def unigram_perplexity(corpus: Corpus) -> float | None:
    """Perplexity of the test text after its first token under the training frequencies.

    The reference for a language model's perplexity: a model that only knows how often
    each token occurs. None if it is infinite because a token of the test text never
    occurs in the training text, as may happen with bytes.
    """
    counts = np.zeros(len(corpus.vocabulary), np.int64)
    for block in blocks(corpus.train):
        counts += np.bincount(block, minlength=len(counts))
    of_test = counts[corpus.test[1:]]
    if not of_test.all():
        return None
    return float(np.exp(-np.mean(np.log(of_test / counts.sum()))))
