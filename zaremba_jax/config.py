"""Frozen, validated, hashable configuration; its values for the paper's models are in `presets`.

Every setting has one name, unique across the records. Section numbers refer to Zaremba, Sutskever
& Vinyals (2014), arXiv 1409.2329.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from zaremba_jax.array_types import CellName
from zaremba_jax.errors import InputError
from zaremba_jax.limits import Setting, Validated, setting, settings_of

PresetName = Literal["quick", "small", "medium", "large", "awd"]
CorpusName = Literal[
    "toy", "ptb", "ptb-char", "wikitext-2", "wikitext-103", "text8", "enwik8", "files"
]
UnitName = Literal["word", "char", "byte"]
Precision = Literal["float32", "bfloat16"]
OptimizerName = Literal["sgd", "adam"]
KernelName = Literal["auto", "scan", "custom_vjp", "pallas"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Validated):
    """The network: its cell, its sizes and its initial values."""

    layers: int = setting("number of recurrent layers", at_least=1, at_most=1000)
    hidden_size: int = setting(
        "units per layer, and the embedding size unless embedding_size is set",
        at_least=1,
        at_most=100_000,
    )
    init_scale: float = setting("parameters are initialized uniformly in ± this", above=0)
    cell: CellName = setting("recurrent cell", default="lstm")
    embedding_size: int = setting(
        "size of the token embeddings; 0: same as hidden_size",
        at_least=0,
        at_most=100_000,
        default=0,
    )
    second_bias: bool = setting(
        "give every gate two biases, which are summed, as in the authors' code", default=False
    )
    tie_weights: bool = setting(
        "share the embedding's weights with the softmax (Press & Wolf 2017)", default=False
    )
    output_size: int = setting(
        "units of the last layer; 0: same as hidden_size",
        at_least=0,
        at_most=100_000,
        default=0,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.tie_weights or self.features == self.layer_sizes[-1]:
            return
        if self.output_size:
            raise InputError(
                f"output_size={self.output_size}: must equal the embedding's size,"
                f" {self.features}, for tied weights; set embedding_size to it or turn off"
                " tie_weights"
            )
        raise InputError(
            f"embedding_size={self.embedding_size}: must equal hidden_size="
            f"{self.hidden_size} for tied weights; set it to 0 or turn off tie_weights"
        )

    @property
    def features(self) -> int:
        """Size of the embedding, the input of the first layer."""
        return self.embedding_size or self.hidden_size

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Units of each layer."""
        return (self.hidden_size,) * (self.layers - 1) + (self.output_size or self.hidden_size,)


def _strength(description: str, **limits: float) -> Any:
    return setting(description, at_least=0, default=0.0, **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizerConfig(Validated):
    """How the network is kept from memorizing the training text."""

    dropout: float = setting(
        "dropout probability of the non-recurrent connections", at_least=0, below=1
    )
    hidden_dropout: float = _strength(
        "dropout probability of h[t-1] where it enters the gates",
        below=1,
    )
    mask_each: Literal["step", "window"] = setting(
        "step: new dropout masks at every time step; window: the same masks throughout a window"
        " (variational dropout, Gal & Ghahramani 2016)",
        default="step",
    )
    update_dropout: float = _strength(
        "dropout probability of the cell's update (Semeniuta et al. 2016)",
        below=1,
    )
    word_dropout: float = _strength(
        "probability that a word is dropped throughout a window (Gal & Ghahramani 2016)",
        below=1,
    )
    zoneout_hidden: float = _strength(
        "probability that a unit of h keeps its last value (Krueger et al. 2017)", at_most=1
    )
    zoneout_cell: float = _strength(
        "probability that a unit of c keeps its last value (Krueger et al. 2017)", at_most=1
    )
    dropconnect: float = _strength(
        "probability that a recurrent weight is dropped for a whole window (Wan et al. 2013)",
        below=1,
    )
    l1: float = _strength("coefficient of the sum of the weights' absolute values in the loss")
    l2: float = _strength("coefficient of the sum of the squared weights in the loss")
    activation_l2: float = _strength(
        "penalty on the squared output of the last layer, after dropout (Merity et al. 2018)",
    )
    temporal_activation_l2: float = _strength(
        "penalty on the squared change of the last layer's output between time steps"
        " (Merity et al. 2018)",
    )
    input_dropout: float | None = setting(
        "dropout probability of the embedding's output; as dropout if not set",
        at_least=0,
        below=1,
        default=None,
    )
    output_dropout: float | None = setting(
        "dropout probability of the softmax's input; as dropout if not set",
        at_least=0,
        below=1,
        default=None,
    )
    weight_decay: float = _strength(
        "every parameter's share that is added to its gradient after clipping, or to adam's step"
        " (Merity et al. 2018)"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Validated):
    """Truncated backpropagation through time, with clipped SGD or Adam at a decaying rate."""

    batch_size: int = setting("parallel streams per batch", at_least=1)
    unroll: int = setting("time steps per window of truncated backpropagation", at_least=1)
    epochs: int = setting("passes over the training text", at_least=1)
    learning_rate: float = setting("learning rate of the first epochs", above=0)
    constant_epochs: int = setting("epochs before the learning rate starts to decay", at_least=0)
    decay_divisor: float = setting("divides the learning rate at every later epoch", at_least=1)
    clip_norm: float = setting("maximum global gradient norm", above=0)
    optimizer: OptimizerName = setting(
        "sgd: plain stochastic gradient descent, as in the paper; adam: with steps of about the"
        " learning rate in every parameter (Kingma & Ba 2015), so that it takes one near 0.001",
        default="sgd",
    )
    carry_over_epochs: bool = setting(
        "start each epoch from the final state of the one before instead of zeros",
        default=False,
    )
    random_offset: bool = setting(
        "start each epoch's windows at a random token before the unroll's end", default=False
    )
    average_from: int = setting(
        "the epoch from which on the model is the mean of the parameters after each step"
        " (Polyak & Juditsky 1992); 0: never",
        at_least=0,
        default=0,
    )
    average_after_stall: int = setting(
        "average after a validation estimate that is worse than the best of those more than this"
        " many epochs before it (Merity et al. 2018); 0: only by average_from",
        at_least=0,
        default=0,
    )
    keep: Literal["last", "best"] = setting(
        "what a run ends with: the last parameters, or those with the best validation estimate"
        " after an epoch; a run on your own text takes the best unless told otherwise",
        default="last",
    )
    decay_when_stalled: int = setting(
        "after constant_epochs, divide the learning rate only when the validation estimate has not"
        " improved for this many epochs; 0: at every epoch",
        at_least=0,
        default=0,
    )
    patience: int = setting(
        "stop when the validation estimate has not improved for this many epochs; 0: never",
        at_least=0,
        default=0,
    )

    def __post_init__(self):
        super().__post_init__()
        stalled = self.decay_when_stalled
        if not stalled:
            return
        if self.decay_divisor == 1:
            raise InputError(
                f"decay_when_stalled={stalled}: decay_divisor=1 leaves the learning rate as it is;"
                " give a higher decay_divisor, or set decay_when_stalled to 0"
            )
        if self.constant_epochs >= self.epochs:
            raise InputError(
                f"decay_when_stalled={stalled}: the learning rate stays the same for"
                f" constant_epochs={self.constant_epochs} of {self.epochs} epochs; give fewer of"
                " the former, or set decay_when_stalled to 0"
            )
        if 0 < self.patience <= stalled:
            raise InputError(
                f"patience={self.patience}: a run would stop before decay_when_stalled={stalled}"
                " divides its learning rate; give a higher patience, or a lower decay_when_stalled"
            )

    @property
    def averages(self) -> bool:
        """Whether the state has an average of the parameters."""
        return self.average_from > 0 or self.average_after_stall > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Validated):
    """How the model is computed; nothing here changes the model itself."""

    precision: Precision = setting(
        "float32, or bfloat16 for the operands of matrix products", default="float32"
    )
    kernel: KernelName = setting(
        "custom_vjp: layers with a hand-written backward pass; pallas: the same with kernels for"
        " TPUs; scan: the readable reference; auto: custom_vjp or pallas, whichever a training"
        " program measures to be faster",
        default="custom_vjp",
    )
    softmax_tokens: int = setting(
        "compute the logits of this many tokens at a time, to save memory; 0: of a whole window",
        at_least=0,
        default=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Validated):
    """A whole run: corpus, network, training and seed."""

    name: PresetName = setting("the preset that the configuration started from")
    corpus: CorpusName = setting("the text; toy is the built-in language, files is your own text")
    seed: int = setting(
        "determines the initial parameters and every dropout mask", at_least=0, below=2**32
    )
    unit: UnitName = setting("what a token is", default="word")
    vocab_size: int = setting(
        "number of types to keep, the most frequent; all others become <unk>; 0: all",
        at_least=0,
        default=0,
    )
    min_count: int = setting(
        "types that occur fewer times than this in the training text become <unk>",
        at_least=1,
        default=1,
    )
    vocabulary: str | None = setting(
        "fingerprint of the given word list whose words are the types; all others become <unk>",
        default=None,
    )
    init_from: str | None = setting(
        "fingerprint of the trained model that training went on from", default=None
    )
    model: ModelConfig
    regularizers: RegularizerConfig
    train: TrainConfig
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        super().__post_init__()
        cell, regularizers, train = self.model.cell, self.regularizers, self.train
        if train.optimizer == "adam" and train.learning_rate >= self.model.init_scale:
            raise InputError(
                f"learning_rate={train.learning_rate}: a step of adam would change each parameter"
                f" by about this, more than the initial ±{self.model.init_scale} (init_scale);"
                " give one near 0.001"
            )
        if regularizers.update_dropout and cell == "tanh":
            raise InputError(
                f"update_dropout={regularizers.update_dropout}: the tanh cell writes no update;"
                " set it to 0, or use the lstm or gru cell"
            )
        if regularizers.zoneout_cell and cell != "lstm":
            raise InputError(
                f"zoneout_cell={regularizers.zoneout_cell}: the {cell} cell has no cell state"
                " c; use zoneout_hidden, or the lstm cell"
            )


_SECTIONS = {
    "model": ModelConfig,
    "regularizers": RegularizerConfig,
    "train": TrainConfig,
    "compute": ComputeConfig,
}


def settings() -> dict[str, Setting]:
    """Every setting of a `Config` by name, with sections flattened."""
    return {
        name: declared._replace(section=section)
        for section, record in {"": Config, **_SECTIONS}.items()
        for name, declared in settings_of(record).items()
    }


def in_current_names(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a file holds, with those values renamed that have another name today."""
    current = dict(flat)
    if current.get("kernel") == "xla":
        current["kernel"] = "custom_vjp"
    return current


def completed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file of any version, in today's names; what it lacks has its default."""
    return {
        name: declared.default
        for name, declared in settings().items()
        if declared.default is not dataclasses.MISSING
    } | in_current_names(flat)


def to_dict(config: Config) -> dict[str, int | float | str | None]:
    """The configuration as one flat dictionary, as written to `config.json`."""
    flat = dataclasses.asdict(config)
    for section in _SECTIONS:
        flat |= flat.pop(section)
    return flat


def override(config: Config, **changes: int | float | str | None) -> Config:
    """The same configuration with some settings changed, validated again.

    >>> from zaremba_jax.presets import MEDIUM
    >>> override(MEDIUM, dropout=0.3, cell="gru").regularizers.dropout
    0.3

    Raises:
      InputError: there is no such setting, or a value is outside its limits.
    """
    if unknown := changes.keys() - settings().keys():
        raise InputError(f"{', '.join(sorted(unknown))}: no such setting in the configuration")
    sections = {}
    for section, record in _SECTIONS.items():
        names = settings_of(record).keys() & changes.keys()
        section_changes = {name: changes.pop(name) for name in names}
        sections[section] = dataclasses.replace(getattr(config, section), **section_changes)
    return dataclasses.replace(config, **changes, **sections)
