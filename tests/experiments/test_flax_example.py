import jax
import pytest
from invoke import run

from experiments import flax_example
from experiments.flax_example import LETTERS, accuracy, train


@pytest.mark.slow
def test_the_example_learns_to_remember_the_first_letter():
    chance = 1 / LETTERS
    with jax.numpy_dtype_promotion("standard"):  # for optax, whose Adam needs it
        assert accuracy(train(steps=60)) > 1.5 * chance


def test_help_is_printed_and_nothing_trained(monkeypatch):
    monkeypatch.setattr(flax_example, "train", None)
    outcome = run("--help", program=flax_example)
    assert outcome.status == 0
    assert outcome.out.startswith("usage: python -m experiments.flax_example [flags]\n")
