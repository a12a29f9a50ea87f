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
        self._ahead: tuple[tuple[int, int], Windows] | None = None
        self._next, self._chunk = 0, 1
        if resident is None:
            resident = fits(text.nbytes, jax.local_devices()[0])
        self._all = self._send(text[:]) if resident else None

    def __len__(self) -> int:
        return len(self._text)

    def __getitem__(self, index: slice) -> Windows:
        first, last = slice_bounds(index, len(self))
        self._next, self._chunk = last % len(self), max(self._chunk, last - first)
        if self._all is not None:
            return jax.lax.dynamic_slice_in_dim(self._all, first, last - first)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == (first, last):
            return ahead[1]
        return self._send(self._text[first:last])

    def prefetch(self) -> None:
        """Sends the next chunk while the device works on the last one requested."""
        bounds = self._next, min(self._next + self._chunk, len(self))
        if self._all is None and self._ahead is None:
            self._ahead = bounds, self._send(self._text[slice(*bounds)])

    def _send(self, windows: np.ndarray) -> Windows:
        if self._sharding is None:
            return jnp.asarray(windows)
        return jax.make_array_from_process_local_data(self._sharding, windows)
