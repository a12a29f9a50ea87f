"""Models for tests: from parameters alone, and of a few words with a text in them."""

import functools

import jax

from zaremba_jax.config import Config, override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.interop.model_file import save_model
from zaremba_jax.model import Model, init_params
from zaremba_jax.presets import QUICK

WORDS = Vocabulary(("the", "<eos>", "cat", "<unk>", "sat"))
TEXT = "the cat sat\nthe zebra\n\ncat zebra ran\n"


def make(seed=0, vocabulary=WORDS, **changes):
    """A model of one small layer, unless the changes say otherwise."""
    small = {"layers": 1, "hidden_size": 3, "init_scale": 1.0}
    config = override(QUICK, seed=seed, **(small | changes))
    params = init_params(config.model, len(vocabulary), key=jax.random.key(seed))
    return Model(params, config, vocabulary)


@functools.cache
def two_models():
    """Models that differ in their parameters."""
    return [make(0), make(1)]


def model_of(params, config: Config = QUICK) -> Model:
    """A model whose words are the numbers of its rows."""
    return Model(params, config, Vocabulary(tuple(map(str, range(len(params.embedding))))))


def put_model(path, model):
    """Saves a model, as of a run, in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, model)
