"""What threads and tasks report of a failure that is raised anyhow is not shown."""

import asyncio
import gc
import sys
import threading
import warnings
from logging import NOTSET, Handler, getLogger

import pytest
from absl import logging

from experiments.training.quiet_threads import quiet_threads


@pytest.fixture
def shown(monkeypatch):
    """What was reported, by whom."""
    reports = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: reports.append("thread"))
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: reports.append("unraisable"))
    handler, loggers = Handler(), [logging.get_absl_logger(), getLogger("asyncio")]
    handler.emit = lambda record: reports.append(record.getMessage())
    before = [(logger.level, list(logger.filters)) for logger in loggers]
    for logger in loggers:  # as if no test before had met a failure
        logger.addHandler(handler)
        logger.setLevel(NOTSET)
        logger.filters.clear()
    with warnings.catch_warnings():
        yield reports
    for logger, (level, filters) in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.filters[:] = filters


class Raises:
    def __del__(self):
        raise OSError("unraisable")


def fail():
    logging.error("logged")
    Raises()
    raise OSError("thread")


def in_thread():
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


async def fail_unasked():
    asyncio.get_running_loop().create_future().set_exception(OSError("full"))


def leave_tasks():
    """Leaves what Orbax does: a failure that nobody asks for, and a coroutine that never runs."""
    asyncio.run(fail_unasked())
    never_runs = fail_unasked()
    del never_runs
    gc.collect()


ALL = ["logged", "unraisable", "thread"]


def test_other_threads_are_quiet_within_the_block_and_are_heard_after_it(shown):
    with quiet_threads():
        in_thread()
        logging.error("of this thread")
    assert shown == ["of this thread"]
    in_thread()
    assert shown == ["of this thread", *ALL]


def test_threads_that_outlast_the_failure_are_quiet_too(shown):
    with pytest.raises(OSError, match="full"), quiet_threads():
        raise OSError("full")
    in_thread()
    assert shown == []


def test_tasks_are_quiet_within_the_block_and_are_heard_after_it(shown):
    with quiet_threads():
        asyncio.run(fail_unasked())
        gc.collect()
    assert shown == []
    asyncio.run(fail_unasked())
    gc.collect()
    (report,) = shown
    assert report.startswith("Future exception was never retrieved")


def test_tasks_that_outlast_the_failure_are_quiet_too(shown):
    with pytest.raises(OSError, match="full"), quiet_threads():
        raise OSError("full")
    leave_tasks()
    assert shown == []
