"""What every test of faults compares with, and a count of what the long form tried."""

import collections

import pytest


@pytest.fixture
def counted(request):
    """Adds to the number of things of a kind that were tried."""

    def add(kind, number=1):
        request.node.user_properties.append((kind, number))

    return add


def pytest_terminal_summary(terminalreporter):
    counts = collections.Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for kind, number in report.user_properties if report.when == "call" else ():
            counts[kind] += number
    for kind, number in sorted(counts.items()):
        terminalreporter.write_line(f"{kind}: {number}")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A program that trains one model, and what it leaves when nothing goes wrong."""
    return trained_by("ptb", tmp_path_factory)


@pytest.fixture(scope="session", params=["ptb", "ensemble", "sweep"])
def trained(request, tmp_path_factory):
    """The same of each program that trains."""
    return trained_by(request.param, tmp_path_factory)


def trained_by(name, tmp_path_factory):
    from faults.trained import train  # it imports modules that the hook above must see first

    return train(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def forked_model(model, tmp_path_factory):
    """The program that trains one model, and what it leaves when it is forked."""
    return forked_by(model, tmp_path_factory)


@pytest.fixture(scope="session")
def forked(trained, tmp_path_factory):
    """The same of each program that trains."""
    return forked_by(trained, tmp_path_factory)


def forked_by(trained, tmp_path_factory):
    from faults.forked import fork_reference

    return fork_reference(trained, tmp_path_factory.mktemp("forked"))
