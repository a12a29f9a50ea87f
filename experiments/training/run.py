"""What a run in training is, whether it trains one model or many, and where it stands."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from experiments.training.journal import Journal
from experiments.training.run_folder import Workdir
from zaremba_jax.array_types import TrainState, Windows
from zaremba_jax.config import Config, to_dict
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.loader import WindowLoader
from zaremba_jax.data.windows import TextWindows
from zaremba_jax.estimates import averaged_from, best_epoch, is_out_of_patience
from zaremba_jax.evaluate import count_predictions
from zaremba_jax.inference.gates import Gates, gate_activations
from zaremba_jax.model import Model
from zaremba_jax.optimizer import learning_rate

EVALUATION_STREAMS = 20  # of the estimate after each epoch


class Run(Protocol):
    """What the loop, the checkpoints and the reports ask of a run."""

    config: Config  # of the first model
    all_configs: list[Config]  # of each model
    corpus: Corpus
    windows: WindowLoader  # of the training text
    state: Any  # on the device
    journal: Journal  # what the host keeps beside it
    kernel: dict[str, Any]  # how the kernel was chosen, from `choose_kernel`

    @property
    def step(self) -> int:
        """Windows trained on, as the state counts them."""
        ...

    @property
    def models_on_device(self) -> tuple[int, int]:
        """How many models stay on a device, and how many of them it trains together."""
        ...

    @property
    def devices(self) -> int:
        """How many devices it trains on, those of other hosts too."""
        ...

    @property
    def are_alike(self) -> bool:
        """Whether the models differ in their seed only, so that means over them say something."""
        ...

    @property
    def layout(self) -> dict[str, Any]:
        """How the state is split over the devices, as far as that decides its shape."""
        ...

    def cut(self, stored: Any) -> Any:
        """The state read into `host_buffers`, in this run's layout, on its devices."""
        ...

    def train(self, count: int) -> tuple[dict[int, float], dict[str, float]]:
        """Trains on the next windows, and checks the result.

        Returns:
          For each live model, the sum of the mean nats per token of these windows, and
          their `curves.averages`.

        Raises:
          NonFiniteLossError: no model is left whose losses and parameters are finite.
        """
        ...

    def metrics(self, epoch: int, windows: int) -> dict[str, Any]:
        """Learning rate, training perplexity and speed over an epoch's first windows."""
        ...

    def estimate(self) -> dict[str, Any]:
        """The validation perplexity by the faster protocol, as entries of the epoch's record.

        Raises:
          NonFiniteLossError: it is finite for no model.
        """
        ...

    def nll(self, ids: np.ndarray) -> np.ndarray:
        """Nats of every token of a text but the first: [predictions], or a row for each model.

        The models are those that the run would end with.
        """
        ...

    def keep_best(self) -> None:
        """Of each model, keeps the parameters just estimated if they are the best so far."""
        ...

    def model(self) -> Model:
        """The model that the run would end with, ready for use; of many, the first live one."""
        ...

    def write_models(self, workdir: Workdir) -> None:
        """Writes the models that did not diverge where the programs that use them look.

        Raises:
          InputError: the folder was moved or removed since training began.
        """
        ...


def windows_trained(state: TrainState) -> int:
    """The windows that a state was trained on.

    It also decides masks and names the checkpoint; optax's count, from which the learning rate
    follows, rises with it. All models of a run have the same, so that a host reads any that it
    holds.
    """
    return int(np.ravel(state.step.addressable_shards[0].data)[0])


def position(run: Run) -> tuple[int, int]:
    """Whole epochs trained, and windows since."""
    return divmod(run.step, len(run.windows))


def next_windows(run: Run, count: int) -> Windows:
    """The next `count` windows to train on, on the device."""
    epoch, window = position(run)
    run.windows.begin(epoch)
    return run.windows[window : window + count]


def is_finished(run: Run) -> bool:
    """Whether all epochs are trained, or one has just ended that used up the patience."""
    epoch, window = position(run)
    train = run.config.train
    if epoch >= train.epochs:
        return True
    return epoch > 0 and window == 0 and is_out_of_patience(train, run.journal.estimates(0))


def rate_of_epoch(run: Run, model: int, epoch: int) -> float:
    """The learning rate of a model in an epoch that follows those in the journal."""
    return learning_rate(run.all_configs[model].train, epoch, run.journal.estimates(model))


def decided_rates(run: Run, models: Sequence[int]) -> dict[str, np.ndarray]:
    """What the estimates of some models decide of their next windows, by names of `train.RATES`."""
    train, rates = run.config.train, {}
    if train.average_after_stall:
        rates["average_from"] = [
            averaged_from(train, run.journal.estimates(model)) for model in models
        ]
    if train.decay_when_stalled:
        epoch = position(run)[0] + 1
        rates["learning_rate"] = [rate_of_epoch(run, model, epoch) for model in models]
    return {name: np.array(of_models, np.float32) for name, of_models in rates.items()}


def chosen_epochs(run: Run, model: int) -> dict[str, int]:
    """What the estimates decided of a model, as entries of its record; 0: not in this run."""
    train, estimates, chosen = run.config.train, run.journal.estimates(model), {}
    if train.averages:
        first = averaged_from(train, estimates)
        chosen["averaged_from_epoch"] = first if first <= len(estimates) else 0
    if train.keep == "best":
        chosen["best_epoch"] = best_epoch(estimates)
    return chosen


def words_per_second(run: Run, windows: int) -> float:
    """The speed of all models together over this epoch's first windows."""
    train = run.config.train
    words = len(run.all_configs) * windows * train.batch_size * train.unroll
    return words / run.journal.epoch_seconds


def names_of(run: Run, models: Sequence[int]) -> str:
    """What tells some of several models from the others: their numbers, or what a sweep varies."""
    settings = [to_dict(config) for config in run.all_configs]
    varied = [name for name in settings[0] if len({of_model[name] for of_model in settings}) > 1]
    if set(varied) <= {"seed"}:
        return f"member{'s' * (len(models) > 1)} {', '.join(map(str, models))}"
    return "; ".join(
        ", ".join(f"{name} {settings[model][name]!r}" for name in varied) for model in models
    )


def gates(run: Run) -> Gates:
    """The gates of the first model at the beginning of the validation text."""
    steps = run.config.train.unroll
    return gate_activations(run.model(), run.corpus.valid, EVALUATION_STREAMS, steps)


def training_windows(config: Config, corpus: Corpus) -> TextWindows:
    """The windows of the training text, once the other texts are known to be long enough.

    Models trained side by side share them, with the random offsets of the first one's seed.
    """
    for ids in (corpus.valid, corpus.test):
        count_predictions(ids)
    train, seed = config.train, config.seed if config.train.random_offset else None
    return TextWindows(corpus.train, train.batch_size, train.unroll, seed)
