"""An ensemble over devices that need not be there: what a compiler makes of its epoch for each."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import hlo
from experiments.targets import (
    PTB_VOCABULARY,
    Target,
    devices_of,
    roofline_seconds,
    temporary_bytes,
    windows_per_epoch,
)
from zaremba_jax.config import Config
from zaremba_jax.ensemble import (
    MEMBER,
    chunk_sizes,
    init_members,
    make_mesh,
    members_that_fit,
    state_specs,
    train_members,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleReport:
    """What became of an epoch of an ensemble, for each of its devices, which all do the same.

    Attributes:
      members: that a device holds, padding included.
      at_once: of those, how many it trains together.
      device_bytes: memory of the states of its members, of the text, and of what training
        needs beside.
      collectives: bytes that it exchanges with others in a step, by kind of communication.
      epoch_seconds: by `targets.roofline_seconds`, which has nothing on communication.
    """

    members: int
    at_once: int
    device_bytes: int
    collectives: dict[str, int]
    epoch_seconds: float


def report_members(
    config: Config,
    target: Target,
    members: int,
    devices: int,
    data: int = 1,
    at_once: int | None = None,
) -> EnsembleReport:
    """Compiles the training of an ensemble for a slice of a target, and reads what came of it.

    Args:
      config: of the run.
      target: what the slice consists of.
      members: how many.
      devices: how many the slice has.
      data: of those, how many share the batch of a member.
      at_once: members that a device trains together; by default what its memory holds.

    Raises:
      MissingCompilerError: the target's compiler is not installed.
      ValueError: there is no slice of so many devices, or `data` does not divide it.
    """
    mesh = make_mesh(devices_of(target, devices), data)
    resident = -(-members // mesh.shape[MEMBER])
    fitting = members_that_fit(config, PTB_VOCABULARY, resident, target.memory_bytes)
    at_once = min(at_once or fitting, resident)
    chunks = chunk_sizes(members, at_once, mesh)
    compiled = {size: compile_members(config, target, size, mesh) for size in set(chunks)}
    programs = {size: hlo.parse(found.as_text()) for size, found in compiled.items()}
    held = sum(_argument_bytes(compiled[size]) for size in chunks)
    return EnsembleReport(
        members=resident,
        at_once=at_once,
        device_bytes=held + max(map(_bytes_beside, compiled.values())),
        collectives=programs[max(chunks)].collectives(),
        epoch_seconds=sum(roofline_seconds(programs[size], target) for size in chunks),
    )


def compile_members(
    config: Config, target: Target, members: int, mesh: Mesh
) -> jax.stages.Compiled:
    """`ensemble.train_members` over a whole epoch of the Penn Treebank, for a mesh of a target."""
    count = windows_per_epoch(config)
    start = functools.partial(init_members, config, PTB_VOCABULARY, range(members), mesh)

    def lying(spec: PartitionSpec, part: Any) -> Any:
        there = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), part)

    states = jax.tree.map(lying, state_specs(MEMBER), jax.eval_shape(start))
    shape = (count, config.train.unroll + 1, config.train.batch_size)
    windows = lying(PartitionSpec(), jax.ShapeDtypeStruct(shape, jnp.int32))
    return train_members.lower(config, states, windows, count, mesh).compile(
        compiler_options=dict(target.compiler_options)
    )


def _argument_bytes(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes


def _bytes_beside(compiled: jax.stages.Compiled) -> int:
    """Memory that a program needs beside its arguments, whose place the results may take."""
    memory = compiled.memory_analysis()
    assert memory is not None
    return temporary_bytes(compiled) + memory.output_size_in_bytes - memory.alias_size_in_bytes
