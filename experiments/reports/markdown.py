"""Tables in Markdown."""

from collections.abc import Collection, Sequence


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> str:
    """A table whose columns are right-aligned, except for those numbered in `left`."""
    rules = ["---" if column in left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rules, *rows))
