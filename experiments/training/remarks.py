"""What a user should know of a run's learning rates and validation estimates, a line each."""

import bisect
from collections.abc import Iterator, Sequence

from experiments.training.run import Run, is_finished, names_of, position
from zaremba_jax.config import TrainConfig
from zaremba_jax.estimates import best_epoch
from zaremba_jax.optimizer import learning_rate

_CLEARLY_WORSE = 1.01  # times the best estimate
_TOO_LOW = 1e-3  # of the first learning rate; the paper's schedules end above it
_CONSEQUENCE = "the learning rate is below a thousandth of the first, where hardly anything changes"


def on_schedule(run: Run) -> Iterator[str]:
    """Before training: from which epoch on the schedule has rates at which nothing is learned."""
    train = run.config.train
    epochs = range(1, train.epochs + 1)  # whose rates never rise
    before = bisect.bisect_left(epochs, True, key=lambda epoch: _is_too_low(train, epoch))
    if before < len(epochs) and not is_finished(run):
        yield (
            f"from epoch {epochs[before]} of {train.epochs} on, {_CONSEQUENCE}: give fewer"
            " --epochs, more --constant_epochs or a lower --decay_divisor"
        )


def on_epoch(run: Run) -> Iterator[str]:
    """After an epoch: whether its stall has brought the rates of all models that low."""
    if not run.config.train.decay_when_stalled:
        return
    estimates = [run.journal.estimates(model) for model in run.journal.live]
    if _all_too_low(run, estimates) and not _all_too_low(run, [e[:-1] for e in estimates]):
        remedy = "give fewer --epochs" if len(run.all_configs) > 1 else "--patience ends such a run"
        yield f"from here on, {_CONSEQUENCE}: {remedy}"


def on_end(run: Run) -> Iterator[str]:
    """At the end: why it came before the last epoch, and whether an earlier one was better."""
    train, (epoch, _) = run.config.train, position(run)
    estimates = {model: run.journal.estimates(model) for model in run.journal.live}
    if epoch < train.epochs:
        yield (
            f"stopped after epoch {epoch} of {train.epochs}: the validation estimate has not"
            f" improved since epoch {best_epoch(estimates[0])} (--patience={train.patience})"
        )
    worsened = {model: e[-1] / min(e) for model, e in estimates.items()}
    many = [model for model, ratio in worsened.items() if ratio > _CLEARLY_WORSE]
    if train.keep == "last" and many:
        worst = max(many, key=worsened.__getitem__)
        found = estimates[worst]
        others = f"; {len(many)} got worse" if len(many) > 1 else ""
        of_many = f" ({names_of(run, [worst])}{others})" if len(run.all_configs) > 1 else ""
        yield (
            f"the validation estimate was {min(found):.2f} after epoch {best_epoch(found)} and is"
            f" {found[-1]:.2f} now{of_many}: with --keep=best, in another --workdir, a run ends"
            " with its best epoch"
        )


def _all_too_low(run: Run, estimates: Sequence[Sequence[float]]) -> bool:
    return all(_is_too_low(run.config.train, len(e) + 1, e) for e in estimates)


def _is_too_low(train: TrainConfig, epoch: int, estimates: Sequence[float] = ()) -> bool:
    return learning_rate(train, epoch, estimates) < _TOO_LOW * train.learning_rate
