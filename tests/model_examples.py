"""Models from parameters alone, for tests to which words do not matter."""

from zaremba_jax.config import Config
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.model import Model
from zaremba_jax.presets import QUICK


def model_of(params, config: Config = QUICK) -> Model:
    """A model whose words are the numbers of its rows."""
    return Model(params, config, Vocabulary(tuple(map(str, range(len(params.embedding))))))
