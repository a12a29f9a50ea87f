"""Programs that read a run whose process trains and saves meanwhile."""

import re
import signal

import pytest
from invoke import EPOCHS, MEMBERS, SINGLE, run_elsewhere, training

from experiments import ensemble, ptb

MODELS = {ptb: "its model", ensemble: "its 3 models"}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "flags"), [(ptb, SINGLE), (ensemble, MEMBERS)])
def test_models_are_read_and_runs_compared_while_they_train(program, flags, folder):
    line = re.compile(
        rf"run: is not finished; {MODELS[program]} after (\d+) of {EPOCHS} epochs.*\n"
    )
    with training(program, *flags, cwd=folder) as process:
        written = run_elsewhere("experiments.generate", *[["--workdir=run"]] * 5, cwd=folder)
        scored = run_elsewhere(
            "experiments.score", *[["--workdir=run", "test.txt"]] * 3, cwd=folder
        )
        (compared,) = run_elsewhere("experiments.report", ["run"], cwd=folder)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    epochs = []
    for outcome in (*written, *scored):
        assert outcome.status == 0, outcome.err
        trained = line.fullmatch(outcome.err)
        assert trained, outcome.err
        epochs.append(int(trained[1]))
    assert epochs == sorted(epochs)
    assert epochs[0] < epochs[-1]
    assert all(len(outcome.out.split()) > 50 for outcome in written)
    assert all("perplexity" in outcome.out for outcome in scored)
    assert compared.status == 0, compared.err
    (shown,) = re.findall(rf"(\d+) of\s+{EPOCHS}", compared.out)
    assert int(shown) >= epochs[-1]
