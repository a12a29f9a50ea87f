"""Command-line programs over `zaremba_jax`: flags, files, progress, figures."""

import sys

from experiments.cli import ctrl_c

if sys.argv[0] == "-m":  # while Python looks for the program that it was asked to run
    ctrl_c.install()
