"""The programs, and the commands that start them. Imports nothing that takes time."""

import ast
import importlib.metadata
import platform
import sys
from pathlib import Path

PACKAGE = "experiments"
_FOLDER = Path(__file__).parent.parent
_INSTALLED = "zaremba"


def programs() -> dict[str, str]:
    """What each program does, in a sentence, by its name."""
    paths = sorted(_FOLDER.glob("[!_]*.py"))
    docstrings = {path.stem: ast.get_docstring(ast.parse(path.read_bytes())) for path in paths}
    return {name: str(text).partition(":")[0] for name, text in docstrings.items()}


def command(name: str) -> str:
    """What starts a program here."""
    is_module = sys.modules[PACKAGE].__name__ == PACKAGE
    return f"python -m {PACKAGE}.{name}" if is_module else f"{_INSTALLED} {name}"


def listing() -> str:
    """What `python -m experiments` prints: the programs, a line each."""
    width = max(map(len, programs()))
    return "\n".join(
        (
            f"usage: {command('PROGRAM')} [flags]",
            "",
            *(f"  {name:{width}}  {does}" for name, does in programs().items()),
            "",
            f"{command('PROGRAM')} --help lists the flags of one.",
        )
    )


def version() -> str:
    """The versions of this package, of jax and of Python."""
    packages = ("zaremba-jax", "jax")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    return ", ".join((*versions, f"Python {platform.python_version()}"))
