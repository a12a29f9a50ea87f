"""Kinds of flags that absl lacks: paths in the user's home, and a choice of several names."""

import os
import re

from absl import flags

flags.disclaim_key_flags()  # --help lists them among the flags of the program


_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


def _local(path: str) -> str:
    """The path with `~` expanded.

    Shells do not expand it after `--flag=`, and a folder named `~` invites a fatal `rm -r ~`.

    Raises:
      ValueError: it is the address of a store elsewhere, which would become a folder `gs:` here.
    """
    if _SCHEME.match(path):
        raise ValueError(
            "only files and folders of this machine are read and written; mount it as a folder,"
            " or copy it"
        )
    return os.path.expanduser(path)


class _PathParser(flags.ArgumentParser[str]):
    """A path, or several with commas between them, each as by `_local`."""

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return ",".join(map(_local, argument.split(",")))


class _PathsParser(flags.ListParser):
    """A list of paths, each as by `_local`, or one path that has commas in its name."""

    def parse(self, argument: str | list[str]) -> list[str]:
        if isinstance(argument, str) and os.path.exists(whole := os.path.expanduser(argument)):
            return [whole]
        return list(map(_local, super().parse(argument)))


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
