"""What the benchmark prints."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_step_times(console: Console, results: dict[str, Any]) -> None:
    """Prints one row per contender."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("contender")
    for column in ("step ms", "tokens/s", "ratio", "quartiles", "of floor", "first s", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for record in results["contenders"]:
        ratio, step = record["ratio"], record["step_ms"].median
        table.add_row(
            record["contender"],
            f"{step:.2f}" if step < 10 else f"{step:.1f}",
            f"{record['tokens_per_second'].median:,.0f}",
            f"{ratio.median:.2f}",
            f"{ratio.lower:.2f}-{ratio.upper:.2f}",
            f"{record['of_floor'].median:.0%}",
            f"{record['first_seconds']:.1f}",
            f"{record['peak_bytes'] / 1e6:,.0f}",
        )
    console.print(table)
    rates = ", ".join(f"{rate:,.0f} in {p}" for p, rate in results["peak_gflops"].items())
    console.print(
        f"{results['config']['name']} on {results['device']}, medians of {results['rounds']}"
        " rounds. Step: of all members. Ratio: time per token over that of our single model."
        " Of floor: the time of the step's matrix products at this run's best rate, over the"
        f" step's; best rates in GFLOP/s: {rates}. First: seconds until the first turn ends. MB:"
        " peak memory."
    )
