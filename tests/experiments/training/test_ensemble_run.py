"""What a run of many models gives to training, tells of it, and writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments.training import ensemble_run
from experiments.training.ensemble_run import new_ensemble
from experiments.training.journal import Journal
from experiments.training.run_folder import Workdir
from experiments.training.single_run import new_run
from zaremba_jax.config import override
from zaremba_jax.data.corpus import make_corpus
from zaremba_jax.errors import InputError
from zaremba_jax.parallel.mesh import make_mesh
from zaremba_jax.presets import QUICK

CORPUS = make_corpus("ours", list("abcaba") * 9, list("abc") * 4, list("cba") * 6)
TINY = override(QUICK, layers=1, hidden_size=3, batch_size=2, unroll=5)


def ensemble(*changes, at_once=2, **settings):
    """An ensemble before its first window, with a member for each of some changes."""
    config = override(TINY, **settings)
    configs = [override(config, **of_member) for of_member in changes]
    mesh = make_mesh(jax.devices()[:1])
    return new_ensemble(configs, CORPUS, at_once, mesh, Console(quiet=True))


def test_stalls_lower_the_rates_that_a_sweep_gave_its_members(monkeypatch):
    rates = {"learning_rate": 1.0}, {"learning_rate": 0.4}
    run = ensemble(*rates, constant_epochs=1, decay_when_stalled=1)
    history = [
        {"valid_perplexity_estimate": 9.0, "valid_perplexity_estimates": estimates}
        for estimates in ([9.0, 9.0], [9.0, 8.0])  # the first one stalls
    ]
    run.journal, given = Journal([0.0, 0.0], history=history), []

    def stop(config, states, windows, mesh, rates, **more):
        given.append(rates["learning_rate"])
        raise InterruptedError

    monkeypatch.setattr(ensemble_run, "train_members", stop)
    with pytest.raises(InterruptedError):
        run.train(1)
    np.testing.assert_allclose(given, [[0.5, 0.4]])


def test_curves_are_of_the_members_that_have_not_diverged(monkeypatch):
    run, train_members = ensemble({}, {"seed": 1}), ensemble_run.train_members

    def diverging(*args, **more):
        states, statistics = train_members(*args, **more)
        return states, statistics.replace(nll=statistics.nll.at[1, 0].set(jnp.nan))

    monkeypatch.setattr(ensemble_run, "train_members", diverging)
    nll, averages = run.train(2)
    assert run.live == [0]
    assert averages["loss/train_nats"] == pytest.approx(nll[0] / 2)


def test_models_that_stay_on_a_device_are_told_from_those_trained_together():
    assert ensemble({}, {"seed": 1}, {"seed": 2}).models_on_device == (3, 2)


def test_members_are_alike_if_they_differ_in_their_seeds_alone():
    assert ensemble({}, {"seed": 1}).are_alike
    assert not ensemble({}, {"dropout": 0.3}).are_alike


@pytest.mark.parametrize("members", [1, 2])
def test_models_are_not_written_where_the_folder_of_a_run_was(tmp_path, members):
    run = new_run(TINY, CORPUS) if members == 1 else ensemble({}, {"seed": 1})
    workdir = Workdir(tmp_path / "run")
    workdir.hold()
    workdir.path.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="was moved or removed while the run trained there"):
        run.write_models(workdir)
    assert not workdir.path.exists()
