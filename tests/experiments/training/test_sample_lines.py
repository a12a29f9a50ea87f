"""What a model writes after each epoch."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import jax.numpy as jnp
from model_examples import make

from experiments.training.run import Run
from experiments.training.sample_lines import sample_lines
from zaremba_jax.data.vocabulary import Vocabulary


def test_samples_have_no_unk_even_if_it_is_all_that_the_model_expects():
    model = make(vocabulary=Vocabulary(("<eos>", "cat", "<unk>")))
    softmax = dataclasses.replace(model.params.softmax, bias=jnp.array([-20.0, 0.0, 20.0]))
    params = dataclasses.replace(model.params, softmax=softmax)
    expecting = dataclasses.replace(model, params=params)
    run = SimpleNamespace(model=lambda: expecting, step=5, windows=range(5), config=model.config)
    assert sample_lines(cast(Run, run), 2) == ["“" + " ".join(["cat"] * 16) + "”"] * 2
