"""Kinds of flags that absl lacks: paths in the user's home, and a choice of several names."""

import os

from absl import flags

flags.disclaim_key_flags()  # --help lists them among the flags of the program


class _PathParser(flags.ArgumentParser[str]):
    """A path, or several with commas between them, with `~` expanded.

    Shells do not expand it after `--flag=`, and a folder named `~` invites a fatal `rm -r ~`.
    """

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return ",".join(map(os.path.expanduser, argument.split(",")))


class _PathsParser(flags.ListParser):
    """A list of paths with `~` expanded, as by `_PathParser`."""

    def parse(self, argument: str | list[str]) -> list[str]:
        return [os.path.expanduser(path) for path in super().parse(argument)]


def define_path(name: str, default: str | None, description: str) -> None:
    """Defines a flag that names a file or folder, as one string even if commas name several."""
    flags.DEFINE(_PathParser(), name, default, description)


def define_paths(name: str, default: list[str] | None, description: str) -> None:
    """Defines a flag that lists files or folders, comma-separated."""
    flags.DEFINE(_PathsParser(), name, default, description, serializer=flags.ListSerializer(","))


def define_choices(name: str, known: list[str], what: str) -> None:
    """Defines a flag that selects from the known names, by default all of them."""
    flags.DEFINE_list(name, known, f"{what}, comma-separated")
    flags.register_validator(
        name,
        lambda values: bool(values) and set(values) <= set(known),
        message=f"give one or more of {', '.join(known)}",
    )
