"""Processes of their own that cost no import: forked from one that has the libraries.

Nothing here imports a program: their flags have the same names, so that a process can run one only.
"""

import contextlib
import functools
import importlib
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from experiments.cli import program as command_line

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
PRELOADED = [
    "preloaded",
    "faults.child",
    "experiments.training.ensemble_run",
    "experiments.training.single_run",
    "experiments.training.tensorboard",
    "experiments.reports.summary",
    "experiments.reports.figures",
    "zaremba_jax.data.published",
    "zaremba_jax.data.toy_corpus",
    "zaremba_jax.inference.text_scoring",
    "zaremba_jax.interop.model_file",
]


@functools.cache
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"):
        forkserver.ensure_running()
    return context


def start_process(target: Any, *arguments: Any) -> BaseProcess:
    """Starts a process that calls a function, which it imports, in this environment."""
    process = server().Process(target=_call, args=(dict(os.environ), target, *arguments))
    process.start()
    return process


def _call(environment: dict[str, str], target: Any, *arguments: Any) -> None:
    os.environ.clear()
    os.environ |= environment
    target(*arguments)


def call(function: Callable[..., T], *arguments: Any, cwd: Path) -> T:
    """What a function returns in a process of its own, with a working directory of its own."""
    receiver, sender = server().Pipe(duplex=False)
    process = start_process(_send_result, sender, cwd, function, *arguments)
    sender.close()
    assert receiver.poll(300), f"{function.__name__} does not end"
    result, error = receiver.recv()
    process.join()
    assert error is None, error
    return result


def _send_result(sender: Connection, cwd: Path, function: Any, *arguments: Any) -> None:
    os.chdir(cwd)
    try:
        sender.send((function(*arguments), None))
    except BaseException:
        sender.send((None, traceback.format_exc()))


def run_lines(name: str, lines: tuple[list[str], ...], before: str) -> list[tuple[Any, str, str]]:
    """Status, output and errors of a program with each list of flags, after lines of Python."""
    exec(before, {})
    program = importlib.import_module(name)
    return [run_line(program, [name, *flags]) for flags in lines]


def run_line(program: Any, line: list[str]) -> tuple[Any, str, str]:
    """Status, output and errors of a program with a command line, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with mock.patch.object(sys, "argv", line):
                command_line.run(program.main)
        except SystemExit as stop:
            status = stop.code or 0
    command_line.FLAGS.unparse_flags()
    return status, out.getvalue(), err.getvalue()
