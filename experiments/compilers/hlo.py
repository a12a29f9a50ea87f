"""A compiled program: its loops, the kernels they launch, the bytes these move.

A kernel here is anything that a computation makes the device start: a fusion, a product, a
copy; an instruction that only names or groups buffers is not.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from experiments.compilers.hlo_text import (
    ON_HOST,
    Computation,
    Instruction,
    multiplications,
    parse_computations,
)

# These name or group buffers; the waiting half of an asynchronous pair is counted at its start.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|after-all|opt-barrier|partition-id"
    "|[a-z-]+-done|async-update|while|call|conditional"
)
_FREE_CUSTOM_CALLS = frozenset({"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"})
_COLLECTIVE = re.compile(
    "((?:ragged-)?all-to-all|all-(?:reduce|gather)|reduce-scatter"
    "|collective-(?:permute|broadcast))(-done)?"  # not -start, which may return its operands too
)
_PARTS = frozenset({"bitcast", "dynamic-slice", "slice"})  # names for a buffer or a part of it
_TRANSFERS = frozenset({"infeed", "outfeed", "send", "recv"})


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop."""

    body: str  # the name of the computation that it repeats
    trip_count: int | None  # None if that is decided at run time
    source: str  # the path of names under which jax traced it
    outer: tuple["Loop", ...] = ()  # the loops around it, the outermost first


@dataclasses.dataclass(frozen=True)
class Program:
    """Every computation by name, and its instructions by name, in the order they run."""

    computations: Mapping[str, Computation]
    entry: str

    def instructions(self) -> Iterator[Instruction]:
        """Every instruction of every computation, including those inside kernels."""
        for computation in self.computations.values():
            yield from computation.values()

    def steps(self, computation: str) -> Iterator[Instruction]:
        """The instructions that a computation runs, including those of computations it calls."""
        for instruction in self.computations[computation].values():
            yield instruction
            if instruction.opcode == "call":
                yield from self.steps(instruction.attribute("to_apply"))

    def loops(self, computation: str = "", outer: tuple[Loop, ...] = ()) -> Iterator[Loop]:
        """The loops that a computation (the entry by default) runs, and those inside them."""
        for step in self.steps(computation or self.entry):
            if step.opcode == "while":
                body, source = step.attribute("body"), step.attribute("op_name")
                loop = Loop(body, self._trip_count(step), source, outer)
                yield loop
                yield from self.loops(body, (*outer, loop))

    def unchanged(self, loop: Loop) -> frozenset[str]:
        """The names, in a loop's body, of the buffers that a pass hands to the next unchanged."""
        body = self.computations[loop.body]
        (root,) = (line for line in body.values() if line.is_root)
        return frozenset(
            name
            for position, name in enumerate(root.operands)
            if body[name].opcode == "get-tuple-element"
            and body[body[name].operands[0]].opcode == "parameter"
            and int(body[name].attribute("index")) == position
        )

    def kernels(self, computation: str, *, scalars: bool = True) -> list[Instruction]:
        """The kernels that a computation starts, without those of loops within it.

        Args:
          computation: its name, for instance a loop's body.
          scalars: whether arithmetic on single numbers counts, as it does on a GPU; on a TPU
            the scalar unit, which steps through the program, does it.
        """
        return [
            step
            for step in self.steps(computation)
            if not _FREE.fullmatch(step.opcode)
            and step.attribute("custom_call_target") not in _FREE_CUSTOM_CALLS
            and (scalars or any(result.shape for result in step.results))
        ]

    def flops(self, kernel: Instruction, scope: Computation) -> Counter[str]:
        """Operations of a kernel's matrix products, by the dtype of their right operands."""
        flops: Counter[str] = Counter()
        for line, around in self._inside(kernel, scope):
            if line.opcode in ("dot", "convolution"):
                left, right = (around[name].results[0] for name in line.operands[:2])
                flops[right.dtype] += 2 * multiplications(line, left.shape, right.shape)
        return flops

    def reads(self, kernel: Instruction, scope: Computation) -> dict[str, int]:
        """Bytes that a kernel reads of each buffer; bitcasts are followed to their origin.

        Of an operand that the kernel slices, only the slices count.
        """
        reads: Counter[str] = Counter()
        for position, name in enumerate(kernel.operands):
            source = origin(scope[name], scope)
            reads[source.name] += self._bytes_read(kernel, position, source.nbytes)
        return reads

    def writes(self, kernel: Instruction, scope: Computation) -> list[int]:
        """Bytes that a kernel writes of each result; of one updated in place, only the update."""
        inside = self.computations.get(kernel.attribute("calls"))
        if inside is None:
            return [_bytes_written(kernel, scope)]
        (root,) = (line for line in inside.values() if line.is_root)
        makers = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return [size for maker in makers for size in self.writes(origin(maker, inside), inside)]

    def moves_to_or_from_host(self, computation: str) -> list[str]:
        """Names of a computation's instructions that wait for the host or copy from or to it."""
        return [
            step.name
            for step in self.steps(computation)
            if step.opcode in _TRANSFERS
            or any(result.space == ON_HOST for result in step.results)
            or re.search("callback|host", step.attribute("custom_call_target"), re.IGNORECASE)
        ]

    def collectives(self) -> dict[str, int]:
        """Collective operations: bytes of all results, by kind of instruction."""
        totals: Counter[str] = Counter()
        for line in self.instructions():
            if match := _COLLECTIVE.fullmatch(line.opcode):
                totals[match[1]] += line.nbytes
        return dict(totals)

    def _inside(
        self, kernel: Instruction, scope: Computation
    ) -> Iterator[tuple[Instruction, Computation]]:
        """The instructions inside a fusion, or the instruction itself if it is none."""
        inside = self.computations.get(kernel.attribute("calls"))
        if inside is None:
            yield kernel, scope
        else:
            for line in inside.values():
                yield from self._inside(line, inside)

    def _bytes_read(self, user: Instruction, position: int, size: int) -> int:
        """Bytes that an instruction reads of the operand at a position."""
        if user.opcode in ("dynamic-slice", "slice", "gather") and position == 0:
            return user.nbytes
        if user.opcode == "dynamic-update-slice" and position == 0:
            return 0
        inside = self.computations.get(user.attribute("calls"))
        if inside is None:
            return size
        (parameter,) = (
            line
            for line in inside.values()
            if line.opcode == "parameter" and int(line.arguments) == position
        )
        return min(size, self._bytes_read_of(parameter, inside, size))

    def _bytes_read_of(self, source: Instruction, scope: Computation, size: int) -> int:
        """Bytes that all users of a buffer in a computation read of it."""
        total = 0
        for user in scope.values():
            for position, name in enumerate(user.operands):
                if name == source.name and position == 0 and user.opcode in _PARTS:
                    part = min(size, user.nbytes)
                    # As the root, it is what a nested fusion returns, and counts in full.
                    read = part if user.is_root else self._bytes_read_of(user, scope, part)
                    total += min(part, read)
                elif name == source.name and user.opcode != "tuple":
                    total += self._bytes_read(user, position, size)
        return total

    def _trip_count(self, loop: Instruction) -> int | None:
        """The compiler's own record, or the only integer constant in the loop's condition."""
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.attribute("condition")]
        bounds = {
            int(line.arguments)
            for step in condition.values()
            for line, _ in self._inside(step, condition)
            if line.opcode == "constant" and line.results[0].dtype == "s32"
        }
        return bounds.pop() if len(bounds) == 1 else None


def parse(text: str | None) -> Program:
    """The program in the text of a compiled module.

    Raises:
      ValueError: there is no text, since some compilers do not give it.
    """
    if not text:
        raise ValueError("the compiler does not give the program's text")
    return Program(*parse_computations(text))


def origin(instruction: Instruction, scope: Computation) -> Instruction:
    """The instruction whose result a chain of bitcasts renames."""
    while instruction.opcode == "bitcast":
        instruction = scope[instruction.operands[0]]
    return instruction


def _bytes_written(instruction: Instruction, scope: Computation) -> int:
    if instruction.opcode == "dynamic-update-slice":
        return scope[instruction.operands[1]].nbytes
    return 0 if instruction.opcode == "parameter" else instruction.nbytes
