"""What `--help` shows: a program's flags, grouped by what they are for, with their values."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from absl import app, flags
from absl.flags import FLAGS
from rich.padding import Padding
from rich.table import Table

from experiments.cli.program_names import command
from experiments.cli.similar_names import did_you_mean
from experiments.cli.terminal import Terminal, write_out
from zaremba_jax.config import to_dict
from zaremba_jax.presets import PRESETS

_ABOUT = ("help", "version")
_WIDEST = 32  # column of names with their values
_groups: dict[str, str] = {}  # the title of the group of a flag

app.define_help_flags()  # of which ours replaces one
flags.DEFINE_bool("help", False, "show this", short_name="h", allow_override=True)
flags.DEFINE_bool("version", False, "show the versions of this package, of jax and of Python")


@contextmanager
def flag_group(title: str) -> Iterator[None]:
    """Lists the flags that are defined within under a title; others are the program's own."""
    before = set(FLAGS)
    yield
    _groups.update({name: title for name in FLAGS if name not in before})


def flags_of(main: Callable[..., None]) -> list[str]:
    """The names of a program's flags, without those that it refuses."""
    module = sys.modules[main.__module__]
    names = [str(flag.name) for flag in FLAGS.get_key_flags_for_module(module)]
    return [name for name in names if name not in getattr(module, "REFUSED", ())]


def taken_by(main: Callable[..., None]) -> str | None:
    """The arguments that a program takes besides flags, as `FILE` or `RUN...`; None for none."""
    return getattr(sys.modules[main.__module__], "TAKES", None)


def print_help(main: Callable[..., None]) -> None:
    """Prints what a program is for, and its flags; settings with the values of `--config`."""
    console = Terminal()
    with console.capture() as shown:
        _show_help(console, main)
    write_out("\n".join(line.rstrip() for line in shown.get().splitlines()))


def _show_help(console: Terminal, main: Callable[..., None]) -> None:
    names, module = flags_of(main), sys.modules[main.__module__]
    console.print(" ".join(filter(None, ("usage:", _command(module), "[flags]", taken_by(main)))))
    console.print(f"\n{str(module.__doc__).strip().partition(':')[0]}.", soft_wrap=True)
    preset = to_dict(PRESETS[str(FLAGS["config"].value)]) if "config" in names else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_groups.get(name, "of this program"), []).append(name)
    width = min(_WIDEST, max(len(f"--{name}={_shown(name, preset)}") for name in (*names, *_ABOUT)))
    for title, members in (groups | {"help": list(_ABOUT)}).items():
        has_settings = any(name in preset for name in members)
        values = f" (values of --config={preset['name']})" if has_settings else ""
        console.print(f"\n{title}{values}", style="bold")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=width, overflow="fold")
        table.add_column(overflow="fold")
        for name in members:
            text = str(FLAGS[name].help).replace("|", " | ")  # where long lists may be broken
            told = f"{text}{_limits(FLAGS[name].parser)}"
            table.add_row(f"--{name}={_shown(name, preset)}", told)
        console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _command(module: ModuleType) -> str:
    spec = module.__spec__
    return command(spec.name.rpartition(".")[2]) if spec is not None else sys.argv[0]


def _shown(name: str, preset: dict[str, Any]) -> str:
    """The value that a flag has if it is not given; … if that is not known before."""
    value = preset.get(name, FLAGS[name].default)
    if value is None:
        return "…"
    if isinstance(value, list):
        return ",".join(value)
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if float(short) == value else f"{short}…"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _limits(parser: Any) -> str:
    bounds = (getattr(parser, f"{which}_bound", None) for which in ("lower", "upper"))
    return f" ({parser.syntactic_help})" if any(bound is not None for bound in bounds) else ""


def about_unknown_flag(name: str, main: Callable[..., None]) -> str:
    """What to say of a flag that a program does not have."""
    hint = did_you_mean(name, flags_of(main), prefix="--")
    return f"--{name}: is not a flag of this program; {hint or 'leave it out;'} see --help"
