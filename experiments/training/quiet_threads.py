"""Threads of libraries that report what is raised anyhow."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from absl import logging


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Holds back what threads other than this one report of failures.

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

    logger, of_threads, unraisable = (
        logging.get_absl_logger(),
        threading.excepthook,
        sys.unraisablehook,
    )
    logger.addFilter(is_shown)
    threading.excepthook, sys.unraisablehook = report_thread, report_unraisable
    yield
    threading.excepthook, sys.unraisablehook = of_threads, unraisable
    logger.removeFilter(is_shown)
