"""The tables that `experiments.compile_for` prints, with notes that explain their columns."""

import dataclasses
import time
from collections.abc import Iterator, Sequence

from rich.table import Table

from experiments.compilers.epochs import (
    compile_epoch,
    profile_ensemble,
    profile_epoch,
    windows_per_epoch,
)
from experiments.compilers.targets import Target
from zaremba_jax.config import Config

_AT_LEAST = (
    "lower bounds, from the rates and bandwidths in the maker's data sheet and, on NVIDIA, 1.8 µs"
    " per kernel, as measured on an H100."
)


class EpochTable:
    """A row for an epoch of a single model."""

    devices = (1,)
    numbers = ("forward", "backward", "copy kB", "mem. MB", "step ms", "epoch s", "built s")
    note = (
        "Forward, backward: kernels of a layer per time step. Copy: the largest array that a time"
        " step writes and that is not a matrix product. Mem.: beyond arguments and results. Step (a"
        f" window) and epoch: {_AT_LEAST} Built: seconds to compile."
    )

    def rows(self, config: Config, target: Target) -> Iterator[list[str]]:
        """Compiles an epoch, and gives its row."""
        start = time.perf_counter()
        compiled = compile_epoch(config, target)
        seconds = time.perf_counter() - start
        profile = profile_epoch(compiled, target)
        yield [
            f"{profile.forward_kernels:.3g}",
            f"{profile.backward_kernels:.3g}",
            f"{profile.largest_copy / 1e3:,.0f}",
            f"{profile.temporary_bytes / 1e6:,.0f}",
            f"{1e3 * profile.epoch_seconds / windows_per_epoch(config):.3f}",
            f"{profile.epoch_seconds:.1f}",
            f"{seconds:.0f}",
        ]


@dataclasses.dataclass(frozen=True)
class EnsembleTable:
    """A row for an ensemble's epoch on each number of devices."""

    members: int
    devices: Sequence[int]
    at_once: int | None

    numbers = ("devices", "each", "at once", "GB", "of", "shared", "step ms", "hours")
    note = (
        "Each: members per device, padding included; at once: how many of them are trained"
        " together. GB: the memory that a device needs, of what it has. Shared: how devices"
        " communicate in a step. Step: a window of all of a device's members; hours: all epochs of"
        f" the configuration; both are {_AT_LEAST}"
    )

    def rows(self, config: Config, target: Target) -> Iterator[list[str]]:
        """Compiles an epoch for each number of devices, and gives its row."""
        for devices in self.devices:
            profile = profile_ensemble(config, target, self.members, devices, at_once=self.at_once)
            yield [
                f"{devices}",
                f"{profile.members}",
                f"{profile.at_once}",
                f"{profile.device_bytes / 1e9:.1f}",
                f"{target.memory_bytes / 1e9:.0f}",
                ", ".join(profile.collectives) or "none",
                f"{1e3 * profile.epoch_seconds / windows_per_epoch(config):.2f}",
                f"{config.train.epochs * profile.epoch_seconds / 3600:.2f}",
            ]


def empty_table(numbers: Sequence[str]) -> Table:
    """A table with columns for what was compiled, and for the numbers."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("target", "config", "precision"):
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right")
    return table
