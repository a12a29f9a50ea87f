"""Threads and tasks of libraries that report what is raised anyhow."""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from absl.logging import get_absl_logger


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Holds back what threads other than this one, and tasks of asyncio, report of failures.

    For a block that raises what they fail with. If it does, they stay quiet, since some go on
    after it.
    """
    this = threading.current_thread()

    def is_shown(*_: object) -> bool:
        return threading.current_thread() is this

    def report_thread(failure: Any) -> None:
        if is_shown():
            of_threads(failure)

    def report_unraisable(failure: Any) -> None:
        if is_shown():
            unraisable(failure)

    absl, asyncio = get_absl_logger(), logging.getLogger("asyncio")
    of_threads, unraisable, asyncio_level = threading.excepthook, sys.unraisablehook, asyncio.level
    absl.addFilter(is_shown)
    asyncio.setLevel(logging.CRITICAL + 1)  # its tasks report when they are collected, anywhere
    threading.excepthook, sys.unraisablehook = report_thread, report_unraisable
    warned = contextlib.ExitStack()
    warned.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    yield
    warned.close()
    threading.excepthook, sys.unraisablehook = of_threads, unraisable
    asyncio.setLevel(asyncio_level)
    absl.removeFilter(is_shown)
