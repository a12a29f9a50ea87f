"""An epoch of the Penn Treebank compiled for accelerators that need not be present.

The programs are compiled from shapes only.
"""

import functools
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from experiments.compilers.targets import Target, devices_of
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE, PUBLISHED
from zaremba_jax.parallel.members import init_members, train_members
from zaremba_jax.parallel.mesh import MEMBER, state_specs
from zaremba_jax.train import init_train_state, train_windows


def windows_per_epoch(config: Config) -> int:
    """How many windows the Penn Treebank's training text is cut into."""
    train_tokens, *_ = PUBLISHED["ptb"].tokens
    return (train_tokens // config.train.batch_size - 1) // config.train.unroll


def compile_epoch(config: Config, target: Target) -> jax.stages.Compiled:
    """Compiles `train.train_windows` over an epoch for one device.

    Raises:
      MissingCompilerError: the target's compiler is not installed.
    """
    (device,) = devices_of(target)
    state = jax.eval_shape(functools.partial(init_train_state, config, PTB_VOCABULARY_SIZE))
    state, windows = _placed(SingleDeviceSharding(device), (state, _windows(config)))
    with lowering_for(device):
        lowered = train_windows.lower(config, state, windows)
    return lowered.compile(compiler_options=dict(target.compiler_options))


def lowering_for(device: Any) -> AbstractContextManager[Any]:
    """Tells Pallas kernels, which need to know, what device their program is lowered for."""
    return jax.sharding.use_abstract_mesh(Mesh(np.array([device]), ("device",)).abstract_mesh)


def compile_members(
    config: Config, target: Target, members: int, mesh: Mesh
) -> jax.stages.Compiled:
    """Compiles `ensemble.train_members` over an epoch for a mesh of a target's devices."""
    start = functools.partial(init_members, config, PTB_VOCABULARY_SIZE, range(members), mesh)
    specs = jax.tree.map(functools.partial(NamedSharding, mesh), state_specs(MEMBER))
    states = jax.tree.map(_placed, specs, jax.eval_shape(start))
    windows = _placed(NamedSharding(mesh, PartitionSpec()), _windows(config))
    lowered = train_members.lower(config, states, windows, mesh)
    return lowered.compile(compiler_options=dict(target.compiler_options))


def _windows(config: Config) -> jax.ShapeDtypeStruct:
    shape = (windows_per_epoch(config), config.train.unroll + 1, config.train.batch_size)
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _placed(sharding: Sharding, arrays: Any) -> Any:
    """The shapes of arrays that lie as the sharding says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)


def memory_of(compiled: jax.stages.Compiled) -> Any:
    """The compiler's `CompiledMemoryStats` of a program.

    Raises:
      ValueError: the compiler does not report them.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError("the compiler does not report the program's memory")
    return memory
