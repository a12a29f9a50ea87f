"""Ctrl-C ends a program in one line, whatever code it hits."""

import os
import subprocess
import sys

import pytest
from invoke import start_python

HIT = "import signal; signal.raise_signal(signal.SIGINT)"
SWALLOWING = "try:\n    import hit\nexcept BaseException as error:\n    {}"
# What `main` does, after `hit` was imported while the program started.
PROGRAMS = {
    "raises": "import hit",
    "becomes another error": SWALLOWING.format("raise ImportError('half imported') from error"),
    "is swallowed twice": "import hit_swallowed, hit\nprint('went on')",
    "is swallowed when something is removed": "class Removed:\n"
    "    def __del__(self):\n        import hit\nRemoved()\nprint('went on')",
}
START = """
import sys
sys.argv[0] = "-m"
import experiments
sys.argv[0] = "program"
from experiments.cli import program
program.run(lambda: exec(DOES, {}))
"""


@pytest.fixture
def hits(tmp_path):
    """A folder of modules in which Ctrl-C hits."""
    (tmp_path / "hit.py").write_text(HIT)
    (tmp_path / "hit_swallowed.py").write_text(
        "import contextlib, signal\nwith contextlib.suppress(BaseException):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )
    return tmp_path


def assert_one_line(process):
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")


def test_ctrl_c_while_a_program_is_imported_is_one_line(hits):
    absl = hits / "absl"
    absl.mkdir()
    (absl / "__init__.py").write_text(SWALLOWING.format("raise ImportError from error"))
    command = f"import runpy, sys; sys.path.insert(0, {str(hits)!r}); sys.argv[0] = '-m';"
    command += "runpy.run_module('experiments.ptb', run_name='__main__', alter_sys=True)"
    assert_one_line(start_python("-c", command, cwd=hits))


def test_ctrl_c_in_a_program_is_one_line_though_a_library_swallows_it(hits):
    processes = [
        start_python("-c", f"DOES = {does!r}{START}", cwd=hits) for does in PROGRAMS.values()
    ]
    for process in processes:
        assert_one_line(process)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_second_signal_erases_the_bar_that_nothing_will_take_away(name):
    code = f"""
import signal
from experiments.endings import ctrl_c, signals
ctrl_c.install()
with signals.deferred_signals():
    print("half a bar", end="", flush=True)
    signal.raise_signal(signal.{name})
    signal.raise_signal(signal.{name})
"""
    ours, terminal = os.openpty()
    subprocess.run(
        [sys.executable, "-c", code], stdout=terminal, stderr=subprocess.PIPE, timeout=60
    )
    shown = os.read(ours, 1000)
    for end in (ours, terminal):
        os.close(end)
    assert shown == b"half a bar\x1b[?25h\r\x1b[K"


def test_package_imported_as_a_library_leaves_ctrl_c_alone():
    code = "import signal, experiments; print(signal.getsignal(signal.SIGINT).__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "default_int_handler\n"
