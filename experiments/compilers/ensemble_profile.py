"""What a compiler makes of an epoch of an ensemble over many devices."""

import dataclasses

from experiments.compilers import hlo
from experiments.compilers.epochs import compile_members, memory_of
from experiments.compilers.roofline import roofline_seconds
from experiments.compilers.targets import Target, devices_of
from zaremba_jax.config import Config
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.parallel.members import chunk_sizes, members_that_fit
from zaremba_jax.parallel.mesh import MEMBER, make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleProfile:
    """What a compiler makes of an ensemble's epoch, per device; all devices do the same.

    Attributes:
      members: how many a device holds, including padding.
      at_once: how many of those it trains together.
      device_bytes: memory of its members' states, of the text, and of what else training
        needs.
      collectives: bytes that it exchanges with others in a step, by kind of communication.
      epoch_seconds: by `roofline.roofline_seconds`, which leaves out communication.
    """

    members: int
    at_once: int
    device_bytes: int
    collectives: dict[str, int]
    epoch_seconds: float


def profile_ensemble(
    config: Config,
    target: Target,
    members: int,
    devices: int,
    data: int = 1,
    at_once: int | None = None,
) -> EnsembleProfile:
    """Compiles the training of an ensemble for a slice of a target, and reads the result.

    Args:
      config: of the run.
      target: what the slice consists of.
      members: how many.
      devices: how many the slice has.
      data: how many of those share the batch of a member.
      at_once: members that a device trains together; by default what its memory allows.

    Raises:
      MissingCompilerError: the target's compiler is not installed.
      ValueError: there is no slice of that many devices, or `data` does not divide it.
    """
    mesh = make_mesh(devices_of(target, devices), data)
    resident = -(-members // mesh.shape[MEMBER])
    fitting = members_that_fit(config, PTB_VOCABULARY_SIZE, resident, target.memory_bytes)
    at_once = min(at_once or fitting, resident)
    chunks = chunk_sizes(members, at_once, mesh)
    compiled = {size: compile_members(config, target, size, mesh) for size in set(chunks)}
    programs = {size: hlo.parse(executable.as_text()) for size, executable in compiled.items()}
    memory = {size: memory_of(executable) for size, executable in compiled.items()}
    held = sum(memory[size].argument_size_in_bytes for size in chunks)
    beside = max(  # the results may take the arguments' buffers
        m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        for m in memory.values()
    )
    return EnsembleProfile(
        members=resident,
        at_once=at_once,
        device_bytes=held + beside,
        collectives=programs[max(chunks)].collectives(),
        epoch_seconds=sum(roofline_seconds(programs[size], target) for size in chunks),
    )
