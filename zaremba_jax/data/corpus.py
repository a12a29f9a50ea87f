"""A corpus: three texts as the ids of one vocabulary, however large. NumPy only."""

import dataclasses
import functools
import hashlib
import mmap
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from zaremba_jax.data.vocabulary import Vocabulary

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
            for block in in_blocks(ids):
                digest.update(block.astype("<i4").tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each type occurs in the training text, int64 [types]."""
        counts = np.zeros(len(self.vocabulary), np.int64)
        for block in in_blocks(self.train):
            counts += np.bincount(block, minlength=len(counts))
        return counts


def in_blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the ids in order, in blocks of bounded size."""
    for start in range(0, len(ids), _BLOCK):
        yield np.array(mapped_afresh(ids)[start : start + _BLOCK])


def mapped_afresh(ids: np.ndarray) -> np.ndarray:
    """The same ids; memory-mapped ones are mapped again.

    Pages read through a map count as the process's memory for as long as the map exists.
    """
    if isinstance(ids, np.memmap) and isinstance(ids.base, mmap.mmap) and ids.filename:
        if ids.mode == "c":
            return ids  # may differ from the file
        return np.memmap(ids.filename, ids.dtype, "r", ids.offset, ids.shape)
    return ids  # NumPy does not tell the offset of a slice of a map


def make_corpus(
    name: str, train: Sequence[str], valid: Sequence[str], test: Sequence[str]
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


def unigram_perplexity(corpus: Corpus, split: Literal["valid", "test"] = "test") -> float | None:
    """Perplexity of a text after its first token under the training frequencies.

    The reference for a language model's perplexity: a model that only knows how often
    each token occurs. None if it is infinite because a token of the text never
    occurs in the training text, as may happen with bytes.
    """
    counts = corpus.counts
    of_text = counts[getattr(corpus, split)[1:]]
    if not of_text.all():
        return None
    return float(np.exp(-np.mean(np.log(of_text / counts.sum()))))
