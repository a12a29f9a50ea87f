"""Runs a program by its name, or lists them: `python -m experiments`; installed, `zaremba`."""

import importlib
import sys

from experiments.cli.program_names import PACKAGE, command, listing, programs, version
from experiments.cli.similar_names import did_you_mean
from experiments.cli.terminal import write_out


def main() -> None:
    """Runs the program that the first argument names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return _tell(listing())
    if name == "--version":
        return _tell(version())
    from experiments.cli import program  # it takes seconds, which a list need not

    if name not in programs():
        hint = did_you_mean(name, programs()) or f"give one of {', '.join(programs())}"
        program.fail(f"{name}: is not a program; {hint}")
    sys.argv = [command(name), *rest]
    program.run(importlib.import_module(f"{PACKAGE}.{name}").main)


def _tell(text: str) -> None:
    try:
        write_out(text)
    except OSError as error:
        from experiments.cli import program

        program.fail(error, status=1)


if __name__ == "__main__":
    main()
