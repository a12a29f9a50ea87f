"""Texts as ids, ids to parallel streams, streams to windows. NumPy only."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zaremba_jax.vocabulary import EOS, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Three splits as ids, int32 [N] each, under the training split's vocabulary.

    `floor_perplexity` is the test split's perplexity under the very source that
    made the text, where that is known.
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
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes())
        return digest.hexdigest()


def read_tokens(path: str | Path) -> list[str]:
    """The words of a UTF-8 text file, with `<eos>` for each line end.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text at byte {error.start}; convert the file to UTF-8 first"
        ) from None
    lines = text.removesuffix("\n").split("\n")
    tokens = [word for line in lines for word in (*line.split(), EOS)]
    if len(tokens) == len(lines):
        raise ValueError(f"{path}: holds no words; give a text with one sentence a line")
    return tokens


def make_corpus(
    name: str,
    train: Sequence[str],
    valid: Sequence[str],
    test: Sequence[str],
    *,
    sources: tuple[str, str] = ("validation text", "test text"),
) -> Corpus:
    """Encodes three lists of tokens with the vocabulary of the first.

    Raises:
      ValueError: as `Vocabulary.encode`; `sources` name the second and third text in it.
    """
    vocabulary = Vocabulary.of(train)
    valid_ids, test_ids = (
        vocabulary.encode(tokens, source)
        for tokens, source in zip((valid, test), sources, strict=True)
    )
    return Corpus(name, vocabulary, vocabulary.encode(train), valid_ids, test_ids)


def read_corpus(
    name: str, train_file: str | Path, valid_file: str | Path, test_file: str | Path
) -> Corpus:
    """Reads three text files.

    Raises:
      FileNotFoundError, ValueError: as `read_tokens` and `make_corpus`, naming the file.
    """
    texts = [read_tokens(path) for path in (train_file, valid_file, test_file)]
    return make_corpus(name, *texts, sources=(str(valid_file), str(test_file)))


def streams(ids: np.ndarray, batch_size: int) -> np.ndarray:
    """Cuts `ids` [N] into contiguous streams, [N // batch_size, batch_size]; drops the tail."""
    length = len(ids) // batch_size
    return ids[: length * batch_size].reshape(batch_size, length).T


def windows(ids: np.ndarray, batch_size: int, unroll: int) -> np.ndarray:
    """The windows of an epoch, [windows, unroll + 1, batch_size], in the order of the text.

    `window[:-1]` are the inputs of a window and `window[1:]` their targets, so a
    window's last target is the next one's first input and every (token, next
    token) pair of the streams appears exactly once. The last short window is
    dropped.

    Raises:
      ValueError: the ids do not fill one window.
    """
    columns = streams(ids, batch_size)
    count = (len(columns) - 1) // unroll
    if count < 1:
        raise ValueError(
            f"{len(ids)} training tokens cannot fill {batch_size} streams of {unroll} + 1; need at"
            f" least {batch_size * (unroll + 1)}, or lower batch_size or unroll"
        )
    starts = unroll * np.arange(count)
    return columns[starts[:, None] + np.arange(unroll + 1)[None, :]]


def unigram_perplexity(corpus: Corpus) -> float:
    """Perplexity of the test text's words after the first under the training frequencies.

    A model that knows nothing but how often each word occurs: the scale against
    which a language model's perplexity is read.
    """
    counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary))
    return float(np.exp(-np.mean(np.log(counts[corpus.test[1:]] / counts.sum()))))
