"""Command-line programs over `zaremba_jax`: flags, files, progress, figures.

An installed copy has another name (see `setup.py`), and takes this one while it runs.
"""

import sys

if is_installed := __name__ != "experiments":
    sys.modules["experiments"] = sys.modules[__name__]
if is_installed or sys.argv[0] == "-m":  # while Python looks for the program to run
    from experiments.endings import ctrl_c

    ctrl_c.install()
