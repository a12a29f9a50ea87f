"""A text cut into parallel streams, and these into windows: what each training step reads."""

import dataclasses

import numpy as np

from zaremba_jax.data.corpus import mapped_afresh
from zaremba_jax.data.vocabulary import check_id_type, check_ids
from zaremba_jax.errors import InputError
from zaremba_jax.limits import whole_number


def streams(ids: np.ndarray, batch_size: int) -> np.ndarray:
    """Cuts `ids` [N] into contiguous streams, [N // batch_size, batch_size]; drops the tail.

    Raises:
      InputError: `batch_size` is not a whole number of at least 1.
    """
    batch_size = whole_number("batch_size", batch_size, at_least=1)
    length = len(ids) // batch_size
    return ids[: length * batch_size].reshape(batch_size, length).T


def slice_bounds(index: slice, length: int) -> tuple[int, int]:
    """The first of `length` positions that a slice takes, and the one after the last.

    Raises:
      TypeError: it is not a slice of consecutive positions.
    """
    if not isinstance(index, slice) or index.step not in (None, 1):
        raise TypeError(f"{index}: take windows in a row, as in [first:last]")
    first, last, _ = index.indices(length)
    return first, max(first, last)


@dataclasses.dataclass(frozen=True, eq=False)
class TextWindows:
    """The windows of an epoch in text order, cut on demand.

    A slice `[first:last]` is int32 [last - first, unroll + 1, batch_size]. `window[:-1]`
    are the inputs of a window and `window[1:]` their targets, so a window's last target
    is the first input of the next and every (token, next token) pair of the streams
    appears exactly once. A short last window is dropped.

    With a `seed`, an epoch's windows start at a random one of the first `unroll` tokens, which seed
    and epoch decide. Every epoch has as many, at most one fewer than without.

    Raises:
      InputError: a size is not a whole number of at least 1, the ids do not fill one window or are
        none.
    """

    ids: np.ndarray
    batch_size: int
    unroll: int
    seed: int | None = None
    epoch: int = 0

    def __post_init__(self):
        for name in ("batch_size", "unroll"):
            size = whole_number(name, getattr(self, name), at_least=1)
            object.__setattr__(self, name, size)
        check_id_type(self.ids)
        if not np.can_cast(self.ids.dtype, np.int32):
            check_ids(self.ids, 2**31)
        if len(self) < 1:
            offset = "" if self.seed is None else ", or turn off random_offset"
            needed = self.unroll + 1 + self._largest_offset
            raise InputError(
                f"{len(self.ids)} training tokens cannot fill {self.batch_size} streams of"
                f" {needed - 1} + 1; give at least {self.batch_size * needed} tokens,"
                f" or lower batch_size or unroll{offset}"
            )

    def __len__(self) -> int:
        inputs = len(self.ids) // self.batch_size - 1 - self._largest_offset
        return max(inputs, 0) // self.unroll

    @property
    def _largest_offset(self) -> int:
        return 0 if self.seed is None else self.unroll - 1

    @property
    def offset(self) -> int:
        """The token of each stream that the first window of the epoch starts at."""
        if self.seed is None:
            return 0
        # Unlike a generator's, these numbers are promised to be the same in every NumPy.
        (random,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        return int(random) % self.unroll

    def of_epoch(self, epoch: int) -> "TextWindows":
        """The windows of an epoch, counted from 0."""
        return self if self.seed is None else dataclasses.replace(self, epoch=epoch)

    @property
    def nbytes(self) -> int:
        """The size of all windows in bytes."""
        return 4 * len(self) * (self.unroll + 1) * self.batch_size

    def __getitem__(self, index: slice) -> np.ndarray:
        first, last = slice_bounds(index, len(self))
        columns = streams(mapped_afresh(self.ids), self.batch_size)[self.offset :]
        tokens = columns[first * self.unroll : last * self.unroll + 1].astype(np.int32)
        starts = self.unroll * np.arange(last - first)
        return tokens[starts[:, None] + np.arange(self.unroll + 1)[None, :]]


def windows(ids: np.ndarray, batch_size: int, unroll: int) -> np.ndarray:
    """All windows of an epoch in one array, int32 [windows, unroll + 1, batch_size].

    Layout and errors are as for `TextWindows`.

    >>> first, second = windows(np.arange(11), batch_size=2, unroll=2)
    >>> first.T.tolist(), second.T.tolist()  # the streams are 0 to 4 and 5 to 9
    ([[0, 1, 2], [5, 6, 7]], [[2, 3, 4], [7, 8, 9]])
    """
    return TextWindows(ids, batch_size, unroll)[:]
