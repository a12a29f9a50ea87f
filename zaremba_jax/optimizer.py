"""SGD with clipping by global norm, at a learning rate that is constant at first, then decays."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zaremba_jax.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 1 (section 4.1).

    "After 6 epochs" means that epochs 1 to 6 run at the full rate and epoch 7
    is the first with a divided one.

    >>> from zaremba_jax.config import MEDIUM
    >>> learning_rate(MEDIUM.train, 6), learning_rate(MEDIUM.train, 8)
    (1.0, 0.6944444444444445)
    """
    return config.learning_rate * config.decay_divisor ** -max(epoch - config.constant_epochs, 0)


def make_schedule(config: TrainConfig, first_rate: ArrayLike | None = None) -> optax.Schedule:
    """`learning_rate` by epochs counted from 0, on the device; it stays at the last epoch's.

    `first_rate` replaces the rate of the first epochs and scales all later ones in proportion.
    """
    first_rate = config.learning_rate if first_rate is None else first_rate
    scale = first_rate / config.learning_rate
    decay_begins = max(config.constant_epochs - 1, 0)
    return optax.exponential_decay(
        init_value=scale * learning_rate(config, decay_begins + 1),
        transition_steps=1,
        decay_rate=1 / config.decay_divisor,
        transition_begin=decay_begins,
        staircase=True,
        end_value=scale * learning_rate(config, config.epochs),
    )


def make_optimizer(
    config: TrainConfig, windows_per_epoch: int, first_rate: ArrayLike | None = None
) -> optax.GradientTransformation:
    """Plain SGD after clipping: a gradient of norm above `clip_norm` is scaled down to it.

    The norm is taken over all parameters together, of the gradient of the loss
    summed over time steps and averaged over the batch. `first_rate` is as for `make_schedule`.
    """
    schedule = make_schedule(config, first_rate)

    def rate_of_step(step: ArrayLike) -> ArrayLike:
        return schedule(jnp.floor_divide(step, windows_per_epoch))

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.sgd(rate_of_step))
