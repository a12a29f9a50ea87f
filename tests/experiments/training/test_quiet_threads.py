"""What threads report of a failure that is raised anyhow is not shown."""

import sys
import threading
from logging import Handler

import pytest
from absl import logging

from experiments.training.quiet_threads import quiet_threads


@pytest.fixture
def shown(monkeypatch):
    """What was reported, by whom."""
    reports = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: reports.append("thread"))
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: reports.append("unraisable"))
    handler, logger = Handler(), logging.get_absl_logger()
    handler.emit = lambda record: reports.append(record.getMessage())
    logger.addHandler(handler)
    filters = list(logger.filters)
    yield reports
    logger.removeHandler(handler)
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
