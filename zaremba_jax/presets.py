"""The presets: every number of the paper's models, and of what came after, with its source.

Section numbers refer to Zaremba, Sutskever & Vinyals (2014), arXiv 1409.2329.
"""

from collections.abc import Mapping

from zaremba_jax.config import (
    Config,
    ModelConfig,
    RegularizerConfig,
    TrainConfig,
    in_current_names,
    override,
)
from zaremba_jax.errors import InputError

# Not the paper's: trains on the built-in corpus in about a minute on two CPU cores.
QUICK = Config(
    name="quick",
    corpus="toy",
    seed=0,
    model=ModelConfig(layers=2, hidden_size=128, init_scale=0.1),
    regularizers=RegularizerConfig(dropout=0.1),
    train=TrainConfig(
        batch_size=20,
        unroll=20,
        epochs=6,
        learning_rate=1.0,
        constant_epochs=3,
        decay_divisor=2.0,
        clip_norm=5.0,
    ),
)

# The non-regularized LSTM.
SMALL = Config(
    name="small",
    corpus="ptb",
    seed=0,
    model=ModelConfig(
        layers=2,  # section 4.1: two hidden layers
        hidden_size=200,  # section 4.1: 200 units per layer
        init_scale=0.1,  # section 4.1: weights start uniform in [-0.1, 0.1]
    ),
    regularizers=RegularizerConfig(dropout=0.0),  # section 4.1: not regularized
    train=TrainConfig(
        batch_size=20,  # section 4.1: minibatches of 20
        unroll=20,  # section 4.1: unrolled for 20 steps
        epochs=13,  # section 4.1: 13 epochs in total
        learning_rate=1.0,  # section 4.1: rate 1
        constant_epochs=4,  # section 4.1: for 4 epochs
        decay_divisor=2.0,  # section 4.1: then halved after each
        clip_norm=5.0,  # the authors' code, main.lua: the paper gives none for this model
    ),
)

MEDIUM = Config(
    name="medium",
    corpus="ptb",
    seed=0,
    model=ModelConfig(
        layers=2,  # section 4.1: all models have two layers
        hidden_size=650,  # section 4.1: 650 units per layer
        init_scale=0.05,  # section 4.1: uniform in [-0.05, 0.05]
    ),
    regularizers=RegularizerConfig(dropout=0.5),  # section 4.1: 50% on non-recurrent connections
    train=TrainConfig(
        batch_size=20,  # section 4.1: minibatches of 20
        unroll=35,  # section 4.1: unrolled for 35 steps
        epochs=39,  # section 4.1: 39 epochs
        learning_rate=1.0,  # section 4.1: rate 1
        constant_epochs=6,  # section 4.1: decreased after 6 epochs
        decay_divisor=1.2,  # section 4.1: by 1.2 after each
        clip_norm=5.0,  # section 4.1: clipped at 5
    ),
)

LARGE = Config(
    name="large",
    corpus="ptb",
    seed=0,
    model=ModelConfig(
        layers=2,  # section 4.1: all models have two layers
        hidden_size=1500,  # section 4.1: 1500 units per layer
        init_scale=0.04,  # section 4.1: uniform in [-0.04, 0.04]
    ),
    regularizers=RegularizerConfig(dropout=0.65),  # section 4.1: 65% on non-recurrent connections
    train=TrainConfig(
        batch_size=20,  # section 4.1: minibatches of 20
        unroll=35,  # section 4.1: unrolled for 35 steps
        epochs=55,  # section 4.1: 55 epochs
        learning_rate=1.0,  # section 4.1: rate 1
        constant_epochs=14,  # section 4.1: reduced after 14 epochs
        decay_divisor=1.15,  # section 4.1: by 1.15 after each
        clip_norm=10.0,  # section 4.1: clipped at 10
    ),
)

# Not the paper's: Merity, Keskar & Socher (2018), arXiv 1708.02182, AWD-LSTM. "Their code" is
# github.com/salesforce/awd-lstm-lm, whose loss is a mean over time where ours is a sum, so that
# here rates are divided, and norms and decay multiplied, by the 70 time steps.
AWD = Config(
    name="awd",
    corpus="ptb",
    seed=0,
    model=ModelConfig(
        layers=3,  # section 5: a three-layer LSTM
        hidden_size=1150,  # section 5: 1150 units in the hidden layer
        embedding_size=400,  # section 5: an embedding of size 400
        output_size=400,  # section 4.5: as large as the embedding
        tie_weights=True,  # section 4.4
        init_scale=0.04,  # ours: they have ±0.1 for the embedding, ±1/√units for the layers
    ),
    regularizers=RegularizerConfig(
        dropout=0.25,  # their code's command for the Treebank; section 5: 0.3 between layers
        input_dropout=0.4,  # section 5: 0.4 on the embedding's output
        output_dropout=0.4,  # section 5: 0.4 on the last layer's output
        mask_each="window",  # section 4.2
        word_dropout=0.1,  # section 5: 0.1 of the words
        dropconnect=0.5,  # section 5: 0.5 of the recurrent weights
        activation_l2=2.0,  # section 5: alpha = 2
        temporal_activation_l2=1.0,  # section 5: beta = 1
        weight_decay=8.4e-5,  # their code: 1.2e-6, of a loss averaged over 70 steps
    ),
    train=TrainConfig(
        batch_size=20,  # their code's command for the Treebank; section 5: 40
        unroll=70,  # section 5: sequences of 70 on average
        epochs=500,  # their code's command for the Treebank; section 5: 750
        learning_rate=30 / 70,  # section 5: rate 30, of a loss averaged over 70 steps
        constant_epochs=500,  # section 3: the rate is constant
        decay_divisor=1.0,  # likewise, beyond the 500 epochs too
        clip_norm=17.5,  # section 5: 0.25, of a loss averaged over 70 steps
        random_offset=True,  # ours, to the end of section 4.1: windows differ between epochs
        average_after_stall=5,  # section 3: n = 5
        keep="best",  # their code
    ),
)

PRESETS: dict[str, Config] = {preset.name: preset for preset in (QUICK, SMALL, MEDIUM, LARGE, AWD)}

# Table 1, by the number of models averaged: validation and test perplexity on the Penn Treebank.
PAPER_PERPLEXITIES = {
    "small": {1: (120.7, 114.5), 2: (100.4, 96.1), 5: (87.9, 84.1), 10: (83.5, 80.0)},
    "medium": {1: (86.2, 82.7), 2: (80.6, 77.0), 5: (76.7, 73.3), 10: (75.2, 72.0)},
    "large": {1: (82.2, 78.4), 2: (76.9, 73.6), 10: (72.8, 69.5), 38: (71.9, 68.7)},
}


def from_dict(flat: Mapping[str, int | float | str | None]) -> Config:
    """The configuration that `to_dict` of any version described; what it lacks is the preset's.

    Raises:
      InputError: there is no such preset or setting, or a value is outside its limits.
    """
    changes = in_current_names(flat)
    name = changes.pop("name", None)
    preset = PRESETS.get(str(name))
    if preset is None:
        raise InputError(f"name={name!r}: must be one of {', '.join(PRESETS)}")
    return override(preset, **changes)
