"""What a compiler makes of an epoch of one model: the loops over time, read kernel by kernel."""

import dataclasses

import jax

from experiments.compilers import hlo
from experiments.compilers.epochs import memory_of
from experiments.compilers.roofline import roofline_seconds
from experiments.compilers.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochProfile:
    """What a compiler makes of an epoch.

    Attributes:
      forward_kernels: kernels per time step in a layer's loop over time, for the worst layer.
      backward_kernels: the same for its gradient.
      largest_copy: bytes of the largest array that a time step writes and that is no product.
      temporary_bytes: memory beyond that of arguments and results.
      epoch_seconds: by `roofline.roofline_seconds`.
    """

    forward_kernels: float
    backward_kernels: float
    largest_copy: int
    temporary_bytes: int
    epoch_seconds: float


def profile_epoch(compiled: jax.stages.Compiled, target: Target) -> EpochProfile:
    """Reads the program that `compile_epoch` made."""
    program = hlo.parse(compiled.as_text())
    loops = time_loops(program)

    def kernels_per_step(loop: hlo.Loop) -> float:
        kernels = program.kernels(loop.body, scalars=target.scalar_kernels)
        body = program.computations[loop.body]
        # A pass may hold several time steps, each with one product.
        steps = sum(bool(program.flops(kernel, body)) for kernel in kernels)
        return len(kernels) / steps

    forward, backward = (
        max(kernels_per_step(loop) for loop in loops if is_backward(loop) == wanted)
        for wanted in (False, True)
    )
    return EpochProfile(
        forward_kernels=forward,
        backward_kernels=backward,
        largest_copy=max(largest_copy(program, loop) for loop in loops),
        temporary_bytes=memory_of(compiled).temp_size_in_bytes,
        epoch_seconds=roofline_seconds(program, target),
    )


def is_backward(loop: hlo.Loop) -> bool:
    """Whether a loop computes gradients: jax traced it as a transpose."""
    return "transpose(" in loop.source


def time_loops(program: hlo.Program) -> list[hlo.Loop]:
    """The loops over time steps: those inside the epoch's loop that have matrix products."""
    return [
        loop
        for loop in program.loops()
        if loop.outer
        and any(
            program.flops(kernel, program.computations[loop.body])
            for kernel in program.kernels(loop.body)
        )
    ]


def largest_copy(program: hlo.Program, loop: hlo.Loop) -> int:
    """Bytes of the largest array that one pass of a loop writes and that is no product.

    If a weight matrix is copied, padded, transposed or converted in the loop, this is at least
    its size.
    """
    body = program.computations[loop.body]
    return max(
        size
        for kernel in program.kernels(loop.body)
        if not program.flops(kernel, body)
        for size in program.writes(kernel, body)
    )
