"""The least time that a compiled program can take on a target."""

import math

from experiments.compilers import hlo
from experiments.compilers.hlo_text import ON_CHIP, Instruction
from experiments.compilers.targets import Target


def roofline_seconds(program: hlo.Program, target: Target) -> float:
    """The least time of a program: each kernel in turn, as fast as the target allows.

    A kernel takes its launch, and the longer of its products at the peak rate and its operands
    and results at the memory's bandwidth. A buffer that a loop hands on unchanged and that fits
    on the chip is read once per loop, and what a TPU's compiler keeps on the chip is free. A
    GPU's L2 may hold more than that, in which case this is too high.
    """
    seconds = _seconds_of_a_pass(program, target, program.entry)
    for loop in program.loops():
        passes = math.prod(around.trip_count or 1 for around in (*loop.outer, loop))
        seconds += passes * _seconds_of_a_pass(program, target, loop.body, loop)
    return seconds


def _seconds_of_a_pass(
    program: hlo.Program, target: Target, computation: str, loop: hlo.Loop | None = None
) -> float:
    """Seconds of a computation's own kernels; for a loop's body, the mean over its passes."""
    scope = program.computations[computation]
    unchanged = program.unchanged(loop) if loop else frozenset()
    trips = (loop.trip_count or 1) if loop else 1

    def moved(kernel: Instruction) -> float:
        total = sum(program.writes(kernel, scope)) * (not _on_chip(kernel))
        for name, size in program.reads(kernel, scope).items():
            nbytes = scope[name].nbytes
            if _on_chip(scope[name]):
                continue
            stays = name in unchanged and nbytes <= target.on_chip_bytes
            total += min(size, nbytes / trips) if stays else size
        return total

    seconds = 0.0
    for kernel in program.kernels(computation, scalars=target.scalar_kernels):
        computing = sum(
            flops / target.peak_flops["bfloat16" if dtype == "bf16" else "float32"]
            for dtype, flops in program.flops(kernel, scope).items()
        )
        seconds += target.launch_seconds
        seconds += max(computing, moved(kernel) / target.memory_bandwidth)
    return seconds


def _on_chip(instruction: Instruction) -> bool:
    return all(result.space == ON_CHIP for result in instruction.results)
