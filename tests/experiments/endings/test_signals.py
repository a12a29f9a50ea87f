"""Requests to stop are put off, answered once, and left alone where they are ignored."""

import signal

import pytest

from experiments.endings.signals import deferred_signals

REPEATED = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOPPING = ("SIGINT", "SIGTERM", "SIGQUIT", *REPEATED)


@pytest.fixture(params=STOPPING)
def number(request):
    """A signal that would raise its own name."""

    def raise_name(number, _):
        raise InterruptedError(signal.Signals(number).name)

    number = signal.Signals[request.param]
    previous = signal.signal(number, raise_name)
    yield number
    signal.signal(number, previous)


def test_first_signal_is_put_off_and_told(number):
    with deferred_signals() as first_signal:
        assert first_signal() == 0
        signal.raise_signal(number)
        assert first_signal() == number
    with pytest.raises(InterruptedError, match=number.name):
        signal.raise_signal(number)


def test_second_has_its_usual_effect_unless_it_is_sent_twice_as_a_matter_of_course(number):
    with deferred_signals() as first_signal:
        signal.raise_signal(number)
        if number.name in REPEATED:
            signal.raise_signal(number)
        else:
            with pytest.raises(InterruptedError, match=number.name):
                signal.raise_signal(number)
        assert first_signal() == number


def test_what_the_program_ignores_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with deferred_signals() as first_signal:
        signal.raise_signal(number)
        assert first_signal() == 0
    assert signal.getsignal(number) == signal.SIG_IGN


def test_signal_may_come_as_soon_as_it_is_put_off(number, monkeypatch):
    came, install = [], signal.signal

    def install_and_raise(which, handler):
        previous = install(which, handler)
        if which == number and not came:
            came.append(which)
            signal.raise_signal(which)
        return previous

    monkeypatch.setattr(signal, "signal", install_and_raise)
    with deferred_signals() as first_signal:
        assert first_signal() == number
