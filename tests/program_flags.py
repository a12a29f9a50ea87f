"""The flags of programs, some of which are of the same names: for a process of its own."""

import importlib
import sys

from absl import flags


def list_flags(programs: tuple[str, ...]) -> dict[str, set[str]]:
    """The names of the flags that each program has of this project."""
    flags_of, imported = {}, []
    for program in programs:
        importlib.import_module(f"experiments.{program}")
        flags_of[program] = {
            flag.name
            for module, defined in flags.FLAGS.flags_by_module_dict().items()
            if module.startswith("experiments")
            for flag in defined
        }
        for name in flags_of[program]:
            delattr(flags.FLAGS, name)
        for module in [module for module in sys.modules if module.startswith("experiments")]:
            imported.append(sys.modules.pop(module))  # absl knows them by ids, not to be used twice
    return flags_of
