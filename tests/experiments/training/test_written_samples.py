"""What a model writes after each epoch."""

import dataclasses
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp

from experiments.training.run import Run
from experiments.training.written_samples import write_samples
from zaremba_jax.config import override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.model import Model, init_params
from zaremba_jax.presets import QUICK


def test_samples_have_no_unk_even_if_it_is_all_that_the_model_expects():
    words = Vocabulary(("<eos>", "cat", "<unk>"))
    config = override(QUICK, layers=1, hidden_size=3)
    params = init_params(config.model, 3, key=jax.random.key(0))
    softmax = dataclasses.replace(params.softmax, bias=jnp.array([-20.0, 0.0, 20.0]))
    model = Model(dataclasses.replace(params, softmax=softmax), config, words)
    run = SimpleNamespace(model=lambda: model, step=5, windows=range(5), config=config)
    assert write_samples(cast(Run, run), 2) == ["“" + " ".join(["cat"] * 16) + "”"] * 2
