"""Sends windows to the device: a whole text at once, or chunk by chunk ahead of use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import Windows
from zaremba_jax.data.windows import TextWindows, slice_bounds

MAX_DEVICE_FRACTION = 0.25  # of its free memory, at most, for a text
MAX_HOST_BYTES = 2**28  # bytes that a text may take if the device is the host


def fits(nbytes: int, device: Any) -> bool:
    """Whether a text of `nbytes` fits on a device and leaves room for the model."""
    memory = device.memory_stats() or {}
    if "bytes_limit" not in memory:
        return nbytes <= MAX_HOST_BYTES
    free = memory["bytes_limit"] - memory.get("bytes_in_use", 0)
    return nbytes <= MAX_DEVICE_FRACTION * free


class WindowLoader:
    """The windows of an epoch; `loader[first:last]` is on the device.

    The arrays are the same whether all windows are resident there or each chunk is cut
    from the text in its turn.
    """

    def __init__(
        self, text: TextWindows, sharding: Any | None = None, resident: bool | None = None
    ):
        """Sends the text to the device if it is to be resident.

        Args:
          text: the windows.
          sharding: the devices, each of which gets all windows; None: the default device.
          resident: whether all windows stay on the device; None: if they fit.
        """
        self._text, self._sharding = text, sharding
        self._ahead: tuple[tuple[int, int, int], Windows] | None = None
        self._next, self._chunk = (text, 0), 1
        if resident is None:
            resident = fits(text.nbytes, jax.local_devices()[0])
        self._all = self._send(text[:]) if resident else None

    def __len__(self) -> int:
        return len(self._text)

    @property
    def resident_bytes(self) -> int:
        """What the windows take on the device for as long as the loader exists."""
        return 0 if self._all is None else self._all.nbytes

    def begin(self, epoch: int) -> None:
        """From now on, the windows are those of this epoch, counted from 0."""
        text = self._text.of_epoch(epoch)
        if text.offset != self._text.offset and self._all is not None:
            self._all = self._send(text[:])
        self._text = text

    def __getitem__(self, index: slice) -> Windows:
        first, last = slice_bounds(index, len(self))
        ends = last == len(self)
        text = self._text.of_epoch(self._text.epoch + 1) if ends else self._text
        self._next, self._chunk = (text, 0 if ends else last), max(self._chunk, last - first)
        if self._all is not None:
            return jax.lax.dynamic_slice_in_dim(self._all, first, last - first)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == (self._text.offset, first, last):
            return ahead[1]
        return self._send(self._text[first:last])

    def prefetch(self) -> None:
        """Sends the next chunk while the device works on the last one requested."""
        text, first = self._next
        last = min(first + self._chunk, len(self))
        if self._all is None and self._ahead is None:
            self._ahead = (text.offset, first, last), self._send(text[first:last])

    def _send(self, windows: np.ndarray) -> Windows:
        if self._sharding is None:
            return jnp.asarray(windows)
        return jax.make_array_from_process_local_data(self._sharding, windows)
