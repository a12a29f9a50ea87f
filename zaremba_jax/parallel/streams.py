"""The streams of a batch over devices: the part of each, and the means over all.

A step of training draws masks and finds the words in use for the whole batch on every device, so
that they equal those of a run on one device; each device then takes its own streams.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zaremba_jax.limits import whole_number
from zaremba_jax.ops.varying import varying_alike

StreamWeights = Float[Array, " batch"]
Tree = TypeVar("Tree")


def streams_of_device(batch_size: int, devices: int) -> int:
    """The number of streams on each of `devices`; weightless ones pad the last.

    Raises:
      InputError: `devices` is not a whole number of at least 1.
    """
    return -(-batch_size // whole_number("devices", devices, at_least=1))


@dataclasses.dataclass(frozen=True)
class BatchShare:
    """A device's share of a batch: all of it or, inside `jax.shard_map`, its part over an axis.

    Attributes:
      axis: the mesh axis over whose devices the streams are divided; None for one device.
    """

    axis: str | None = None

    def part(self, tree: Tree) -> Tree:
        """This device's part of arrays with the batch on axis 1, padded with zeros."""
        if self.axis is None:
            return tree
        devices, index = jax.lax.axis_size(self.axis), jax.lax.axis_index(self.axis)

        def cut(x: jax.Array) -> jax.Array:
            size = streams_of_device(x.shape[1], devices)
            padding = [(0, 0)] * x.ndim
            padding[1] = (0, size * devices - x.shape[1])
            return jax.lax.dynamic_slice_in_dim(jnp.pad(x, padding), index * size, size, axis=1)

        return jax.tree.map(cut, tree)

    def weights(self, batch_size: int) -> StreamWeights | None:
        """Weights of this device's streams that make means over devices means over the batch.

        None if all are equal.
        """
        if self.axis is None:
            return None
        devices = jax.lax.axis_size(self.axis)
        padded = devices * streams_of_device(batch_size, devices)
        if padded == batch_size:
            return None
        return self.part(jnp.full((1, batch_size), padded / batch_size))[0]

    def own(self, tree: Tree) -> Tree:
        """This device's copy of arrays that all devices have, such as parameters.

        The gradient of a copy is that of this device's streams. Without the copy, jax would sum the
        gradients over devices in a `jax.shard_map` with `check_vma`.
        """
        if self.axis is None:
            return tree
        return varying_alike((tree, jax.lax.axis_index(self.axis)))[0]

    def mean(self, tree: Tree) -> Tree:
        """The means over the devices that share the batch."""
        return tree if self.axis is None else jax.lax.pmean(tree, self.axis)


WHOLE_BATCH = BatchShare()
