"""Runs a program: its command line parsed, what the user can mend told in one line."""

import errno
import functools
import io
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from absl.flags import FLAGS

from experiments.cli.help import about_unknown_flag, print_help, taken_by
from experiments.cli.program_names import version
from experiments.cli.terminal import Terminal, silence, write_aside, write_out
from experiments.endings import ctrl_c
from experiments.endings.errors import ProgramEndError
from zaremba_jax.data.encoding import default_cache_dir
from zaremba_jax.errors import InputError
from zaremba_jax.whole_files import NO_SPACE_LEFT

# File errors that another name would avoid.
_PATH_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# Where programs write unless told otherwise, by the flag that tells.
_DEFAULT_FOLDERS = {"cache_dir": default_cache_dir, "workdir": lambda: Path("runs")}
_LARGEST_INT = 2**32 - 1
# What a flag's value must be, by what Python says of one that is not.
_SAID_BY_PYTHON = {
    r"\('Non-boolean argument to boolean flag', .*\)": "must be true or false",
    r"invalid literal for int\(\) with base 10: .*": "must be a whole number",
    "could not convert string to float: .*": "must be a number",
}
# How a compiler or a device says that memory ran out.
_NO_MEMORY_LEFT = re.compile("RESOURCE_EXHAUSTED|out.of.memory", re.IGNORECASE)
# Ways to save memory, by the flag that a program needs for each.
_MEMORY_REMEDIES = {
    "members_at_once": "--members_at_once=1",
    "samples": "fewer --samples",
    "softmax_tokens": "--softmax_tokens=1000",
    "batch_size": "a lower --batch_size",
}


def fail(error: object, status: int = 2) -> NoReturn:
    """Ends the program with one line on standard error."""
    if isinstance(error, OSError) and error.filename is not None:
        error = _about_file(error)
    try:
        write_aside(f"error: {' '.join(str(error).split())}")
    except OSError:  # the line cannot be told, the status can
        silence(sys.stderr)
    sys.exit(status)


def _about_file(error: OSError) -> str:
    """The system's message about a file, under its intended name, with a remedy."""
    path = str(error.filename2 or error.filename)
    flag, remedy = _flag_of(Path(path), error), "give the same command again once that is mended"
    another = f"name another with --{flag}" if flag else "name another"
    if _is_about_a_path(error):
        remedy = f"{another}, or change what is there"
    elif error.errno in NO_SPACE_LEFT:
        remedy = "free some space, and give the same command again"
        remedy += f", or {another}" if flag == "cache_dir" else ""
    return f"{path}: {str(error.strerror).lower()}; {remedy}"


def _is_about_a_path(error: OSError) -> bool:
    of_path = errno.EROFS, errno.ENAMETOOLONG
    return isinstance(error, _PATH_ERRORS) or error.errno in of_path


def _flag_of(path: Path, error: OSError) -> str | None:
    """The flag that names another folder for a path, or for one above it that cannot be made."""
    try:
        target = path.absolute()
    except FileNotFoundError:  # the current folder was removed meanwhile
        return None
    may_be_above = not isinstance(error, IsADirectoryError)
    for flag, default in _DEFAULT_FOLDERS.items():
        value = FLAGS[flag].value if flag in FLAGS else []
        if not isinstance(value, list):  # which names what is read
            folder = Path(value or default()).absolute()
            above = may_be_above and folder.is_relative_to(target)
            if target.is_relative_to(folder) or above:
                return flag
    return None


def run(main: Callable[..., None]) -> None:
    """Parses the command line and runs `main`; what the user can mend ends in one line.

    The status is 2 for a mistake in what was asked for, 1 for what this machine refuses: a full
    disk, or too little memory on the device or the host; a `ProgramEndError` brings its own.
    Anything else is a fault of the program and keeps its traceback.

    `main` gets the arguments that are not flags: none; or, as `TAKES` of its module says, one
    (`FILE`), or one or more (`RUN...`).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid text
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # figures go into files, whatever shows the user's own
    ctrl_c.make_ready()
    try:
        Path.cwd()
    except FileNotFoundError:
        fail("the current folder was removed; change to one that is there")
    try:
        _run(main)
    finally:
        if ctrl_c.has_come() and not isinstance(sys.exception(), SystemExit):
            fail("interrupted", ctrl_c.STATUS)


def _run(main: Callable[..., None]) -> None:
    try:
        app.run(lambda argv: main(*argv[1:]), flags_parser=functools.partial(_parse, main))
    except KeyboardInterrupt:
        fail("interrupted", ctrl_c.STATUS)
    except ProgramEndError as end:
        if end.is_error:
            fail(end, end.status)
        Terminal(quiet=jax.process_index() > 0).print(str(end), soft_wrap=True)
        sys.exit(end.status)
    except InputError as error:
        fail(error)
    except OSError as error:
        fail(error, status=2 if _is_about_a_path(error) else 1)
    except (MemoryError, RuntimeError, AssertionError) as error:
        if problem := _platform_problem():
            fail(problem)
        message = str(error).partition("\n")[0]
        of_jax = isinstance(error, jax.errors.JaxRuntimeError)
        if not (isinstance(error, MemoryError) or (of_jax and _NO_MEMORY_LEFT.search(message))):
            raise
        remedies = [remedy for name, remedy in _MEMORY_REMEDIES.items() if name in FLAGS]
        less = " or ".join([*remedies, "a smaller model"])
        told = f": {message}" if message else ""
        fail(f"not enough memory{told}; end other programs, or try {less}", status=1)


def _platform_problem() -> str | None:
    """What is wrong with the devices that the user asked jax for, if none can be used."""
    asked = f"JAX_PLATFORMS={jax.config.jax_platforms or ''}"  # pyright: ignore[reportAttributeAccessIssue]
    remedy = "set it to cpu, or to what this machine has"
    if (devices := os.environ.get("JAX_NUM_CPU_DEVICES")) is not None:
        asked += f", JAX_NUM_CPU_DEVICES={devices}"
        remedy = "set them to what this machine has"
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a GPU that is not there
        reason = str(error).partition("\n")[0] or "no such device is there"
        return f"{asked}: {reason}; {remedy}"
    return None


def _parse(main: Callable[..., None], argv: list[str]) -> list[str]:
    rest, problem = argv, ""
    try:
        rest = FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        problem = about_unknown_flag(error.flagname, main)
    except (flags.Error, ValueError) as error:  # absl's own flags raise the latter
        problem = f"{_plainly(str(error))}; see --help"
    except SystemExit:  # after --helpfull, with status 1
        sys.exit(0)
    if FLAGS["help"].value:
        print_help(main)
        sys.exit(0)
    if FLAGS["version"].value:
        write_out(version())
        sys.exit(0)
    if problem:
        fail(problem)
    _refuse_numbers_without_use()
    if FLAGS["verbosity"].using_default_value:  # no progress messages from libraries
        FLAGS.verbosity = logging.WARNING
    arguments, takes = rest[1:], taken_by(main)
    if takes is None and arguments:
        fail(f"{arguments[0]!r} is not a flag; see --help")
    if takes and (not arguments or (len(arguments) > 1 and not takes.endswith("..."))):
        prefix = f"{' '.join(arguments)}: " if arguments else ""
        fail(f"{prefix}give {takes} besides the flags; see --help")
    return rest


def _plainly(message: str) -> str:
    """absl's message on a flag, with what Python says of its value in other words."""
    for said, meant in _SAID_BY_PYTHON.items():
        message = re.sub(said, meant, message)
    return message


def _refuse_numbers_without_use() -> None:
    """Refuses what slips through every limit of a flag, or overflows where it is used."""
    for name in FLAGS:
        value = FLAGS[name].value
        if isinstance(value, float) and math.isnan(value):
            fail(f"--{name}=nan: is no number; see --help")
        if isinstance(value, int) and abs(value) > _LARGEST_INT:
            fail(f"--{name}={value}: must be at most {_LARGEST_INT}; see --help")
