"""Zaremba, Sutskever & Vinyals (2014), "Recurrent Neural Network Regularization", in JAX.

The paper (https://arxiv.org/abs/1409.2329) in its order: `cells` (one step of an LSTM),
`regularizers` (dropout and what it is compared with), `rnn` (the deep network), `model` (the
language model), `optimizer`, `train`, `evaluate`, `ensemble`; `presets` has the paper's sizes and
schedules. Beside it: `data` (texts), `inference` (what a trained model is used for), `interop`
(files, Flax, torch, StableHLO), `parallel` (many models, many devices), `ops` and `kernels` (the
products and loops underneath), `checkpoint`.

This trains a model for an epoch and evaluates it:

>>> import jax.numpy as jnp
>>> import zaremba_jax as zj
>>> corpus = zj.toy_corpus()
>>> config = zj.override(zj.QUICK, hidden_size=8, epochs=1)
>>> text = jnp.asarray(zj.windows(corpus.train[:4200], batch_size=20, unroll=20))
>>> state = zj.init_train_state(config, len(corpus.vocabulary))
>>> state, statistics = zj.train_windows(config, state, text)
>>> model = zj.Model(state.model, config, corpus.vocabulary)
>>> 1 < zj.perplexity(zj.text_nll(model, corpus.test[:500])) < len(corpus.vocabulary)
True
"""

from typing import TYPE_CHECKING, Any

from zaremba_jax.config import ComputeConfig, override
from zaremba_jax.data.encoding import Encoding, read_corpus
from zaremba_jax.data.published import load_published
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.data.windows import windows
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.generation import Sampling
from zaremba_jax.inference.trained_model import Model
from zaremba_jax.presets import LARGE, MEDIUM, QUICK, SMALL
from zaremba_jax.train import init_train_state, train_windows

__all__ = [
    "LARGE",
    "MEDIUM",
    "QUICK",
    "SMALL",
    "ComputeConfig",
    "DeepRNN",
    "Encoding",
    "InputError",
    "Model",
    "Sampling",
    "init_train_state",
    "load_published",
    "mixture_nll",
    "override",
    "perplexity",
    "read_corpus",
    "text_nll",
    "toy_corpus",
    "train_windows",
    "windows",
]

if TYPE_CHECKING:
    from zaremba_jax.interop.flax_modules import DeepRNN


def __getattr__(name: str) -> Any:
    """Flax's modules take a tenth of a program's start, and are imported with the first use."""
    if name != "DeepRNN":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zaremba_jax.interop.flax_modules import DeepRNN

    return DeepRNN


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
