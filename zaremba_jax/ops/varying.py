"""The mesh axes over which arrays vary within `jax.shard_map`.

There jax lets an operation mix what is the same on all devices with what is not. What a loop
carries, and the arguments of a function with a backward pass of its own, have to be made alike.
"""

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def varying_alike(tree: Tree) -> Tree:
    """The same arrays, all varying over the axes over which any of them does.

    The gradient of one that was the same on all devices is summed over them. Outside of
    `jax.shard_map`, and with its `check_vma` off, nothing is changed.
    """
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(tree)))

    def vary(leaf: Any) -> Any:
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _axes(x: Any) -> frozenset[Any]:
    aval: Any = jax.typeof(x)
    return aval.mat.varying
