"""What a run leaves, to be compared byte by byte with what another left."""

import re
from pathlib import Path

_TIMING = re.compile(rb'("(?:seconds|words_per_second)": )[-+.\de]+')


def results(workdir: Path) -> dict[str, bytes]:
    """Every file of a run with its bytes, timings aside; of checkpoints the names."""
    found = {}
    for path in workdir.rglob("*"):
        name = path.relative_to(workdir)
        if name.parts[0] == "checkpoints":
            found["/".join(name.parts[:2])] = b""
        elif path.is_file():
            found[str(name)] = _TIMING.sub(rb"\1", path.read_bytes())
    return found


def assert_same_results(workdir: Path, other: Path) -> None:
    actual, expected = results(workdir), results(other)
    assert sorted(actual) == sorted(expected)
    assert [name for name, content in actual.items() if content != expected[name]] == []
