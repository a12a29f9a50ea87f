"""SGD with clipping by global norm, at a learning rate that is constant at first, then decays."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zaremba_jax.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 1 (section 4.1).

    "After 6 epochs" means that epochs 1 to 6 run at the full rate and epoch 7
    is the first with a divided one.
    """
    return config.learning_rate * config.decay_divisor ** -max(epoch - config.constant_epochs, 0)


def make_optimizer(
    config: TrainConfig, windows_per_epoch: int, first_rate: ArrayLike | None = None
) -> optax.GradientTransformation:
    """Plain SGD after clipping: a gradient of norm above `clip_norm` is scaled down to it.

    The norm is taken over all parameters together, of the gradient of the loss
    summed over time steps and averaged over the batch. `first_rate` replaces the rate
    of the first epochs and scales all later ones in proportion.
    """
    rates = jnp.array([learning_rate(config, epoch + 1) for epoch in range(config.epochs)])
    if first_rate is not None:
        rates = rates * (first_rate / config.learning_rate)

    def schedule(step: ArrayLike) -> jax.Array:
        epoch = jnp.floor_divide(step, windows_per_epoch)
        return rates[jnp.minimum(epoch, config.epochs - 1)]

    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.sgd(schedule))
