"""What befalls a run between two chunks of training."""

import signal

import pytest


@pytest.fixture
def after_chunk(monkeypatch):
    """A function that changes the state and the losses of a chunk, counted from 1 from then on.

    In an ensemble, members that are trained one after another have chunks of their own.
    """
    from experiments.training import ensemble_run, single_run  # the hook above must see them first

    trained, changes = [], {}

    def changing(train):
        def changed(*args, **kwargs):
            result = train(*args, **kwargs)
            trained.append(train)
            return changes.pop(len(trained), lambda *same: same)(*result)

        return changed

    for module, name in ((single_run, "train_windows"), (ensemble_run, "train_members")):
        monkeypatch.setattr(module, name, changing(getattr(module, name)))
    return lambda chunk, change: changes.__setitem__(len(trained) + chunk, change)


@pytest.fixture
def ctrl_c_after(after_chunk):
    """A function that has Ctrl-C hit a chunk, once or more often."""

    def set_hit(chunk, times=1):
        def hit(*result):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)  # immediately; os.kill leaves the time to it
            return result

        after_chunk(chunk, hit)

    return set_hit
