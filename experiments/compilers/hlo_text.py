"""The text of a compiled program, as `jax.stages.Compiled.as_text()` gives it, line by line.

It has one computation after the other, and one instruction per line.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from itertools import accumulate

ON_HOST = 5  # the memory space that a layout writes as S(5)
ON_CHIP = 1  # that of a TPU's on-chip memory

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\) |\S+ )([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?")
_NAME = re.compile(r"%([\w.-]+)")

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One array that an instruction returns."""

    dtype: str
    shape: Shape
    space: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes, without the padding of its layout."""
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * (int(bits[0]) if bits else 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = results opcode(arguments), attributes`."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @property
    def nbytes(self) -> int:
        """Size of all results together, in bytes."""
        return sum(result.nbytes for result in self.results)

    def attribute(self, name: str) -> str:
        """The value of an attribute such as `body=%name`; empty if there is none."""
        match = re.search(rf'\b{name}=[%"]?([^,"\s]+)', self.attributes)
        return match[1] if match else ""

    def axes(self, name: str) -> list[int]:
        """The value of an attribute such as `lhs_contracting_dims={1}`."""
        return [int(axis) for axis in re.findall(r"\d+", self.attribute(name))]


Computation = Mapping[str, Instruction]


def parse_computations(text: str) -> tuple[dict[str, Computation], str]:
    """Every computation by name, and the name of the one that is the program's entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] = {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif match := _LINE.match(line):
            instruction = _instruction(*match.groups())
            current[instruction.name] = instruction
    return dict(computations), entry


def _instruction(root: str | None, name: str, results: str, opcode: str, rest: str) -> Instruction:
    depths = accumulate(({"(": 1, ")": -1}.get(character, 0) for character in rest), initial=1)
    end = next(index for index, depth in enumerate(depths) if depth == 0)
    arguments, attributes = rest[: end - 1], rest[end:]
    buffers = (
        Buffer(dtype, tuple(int(size) for size in shape.split(",") if size), int(space or 0))
        for dtype, shape, space in _ARRAY.findall(results)
    )
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, opcode, tuple(buffers), operands, arguments, attributes, bool(root))


def multiplications(product: Instruction, left: Shape, right: Shape) -> int:
    """Multiplications of actual numbers, not of a window's padding or dilation."""
    result = product.results[0].shape
    if product.opcode == "dot":
        contracted = math.prod(right[axis] for axis in product.axes("rhs_contracting_dims"))
        return math.prod(result) * contracted
    # As in 0bf_0io->0bf: batch, features and, by number, the axes that the window moves along.
    # A TPU's compiler uses such an axis for a batch of products, each with its own weights.
    labels = re.split("_|->", product.attribute("dim_labels"))
    moved = sorted(label for label in labels[2] if label.isdecimal())
    pairs = (
        _pairs(product, int(label), left[labels[0].index(label)], result[labels[2].index(label)])
        for label in moved
    )
    kept = [size for label, size in zip(labels[2], result, strict=True) if label not in moved]
    return math.prod(kept) * right[labels[1].index("i")] * math.prod(pairs)


def _pairs(convolution: Instruction, axis: int, inputs: int, outputs: int) -> int:
    """How many pairs of an input and a weight meet along an axis of a convolution's window."""
    (text,) = re.findall(r"window=\{(.*?)\}", convolution.attributes)
    window = {name: values.split("x") for name, values in (x.split("=") for x in text.split())}

    def value(name: str, default: int) -> int:
        return int(window[name][axis]) if name in window else default

    padding = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    dilation = value("lhs_dilate", 1)
    positions = (
        output * value("stride", 1) + weight * value("rhs_dilate", 1) - padding
        for output in range(outputs)
        for weight in range(value("size", 1))
    )
    return sum(i % dilation == 0 and 0 <= i // dilation < inputs for i in positions)
