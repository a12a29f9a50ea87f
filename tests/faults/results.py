"""What a run leaves, to be compared byte by byte with what another left."""

import re
from pathlib import Path

from invoke import OF_ITS_TIME, table, untimed

_VALUE = rb'"(?:[^"\\]|\\.)*"|[-+.\de]+'
_OF_ITS_TIME = re.compile(rb'("(?:%s)": )(?:%s)' % ("|".join(OF_ITS_TIME).encode(), _VALUE))


def results(workdir: Path) -> dict[str, bytes]:
    """Every file of a run, but for what is of its time; of checkpoints the names."""
    found = {}
    for path in workdir.rglob("*"):
        name = path.relative_to(workdir)
        if name.parts[0] == "checkpoints":
            found["/".join(name.parts[:2])] = b""
        elif path.suffix == ".csv":
            found[str(name)] = repr(untimed(table(workdir))).encode()
        elif path.is_file():
            found[str(name)] = _OF_ITS_TIME.sub(rb"\1", path.read_bytes())
    return found


def assert_same_results(workdir: Path, other: Path) -> None:
    actual, expected = results(workdir), results(other)
    assert sorted(actual) == sorted(expected)
    assert [name for name, content in actual.items() if content != expected[name]] == []
