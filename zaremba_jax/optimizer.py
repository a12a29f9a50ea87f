"""SGD with clipping by global norm, at a learning rate that is constant at first, then decays.

Also Adam instead of SGD, weight decay, and the mean of the parameters after each step.

References:
  Polyak & Juditsky (1992): https://doi.org/10.1137/0330046
  Kingma & Ba (2015): https://arxiv.org/abs/1412.6980
  Merity et al. (2018): https://arxiv.org/abs/1708.02182
  Loshchilov & Hutter (2019): https://arxiv.org/abs/1711.05101
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from zaremba_jax.array_types import ModelParams, Step
from zaremba_jax.config import TrainConfig
from zaremba_jax.estimates import count_stalls


def learning_rate(config: TrainConfig, epoch: int, estimates: Sequence[float] = ()) -> float:
    """The learning rate of an epoch, counted from 1 (section 4.1).

    "After 6 epochs" means that epochs 1 to 6 run at the full rate and epoch 7
    is the first with a divided one. With `decay_when_stalled`, it is divided once for each stall in
    `estimates`, the validation perplexities after the epochs before.

    >>> from zaremba_jax.presets import MEDIUM
    >>> learning_rate(MEDIUM.train, 6), learning_rate(MEDIUM.train, 8)
    (1.0, 0.6944444444444445)
    """
    if config.decay_when_stalled:
        divisions = count_stalls(estimates, config.decay_when_stalled, config.constant_epochs)
    else:
        divisions = max(epoch - config.constant_epochs, 0)
    return config.learning_rate * config.decay_divisor**-divisions


def make_schedule(config: TrainConfig, first_rate: ArrayLike | None = None) -> optax.Schedule:
    """`learning_rate` by epochs counted from 0, on the device; it stays at the last epoch's.

    `first_rate` replaces the rate of the first epochs and scales all later ones in proportion.
    With `decay_when_stalled` the rate is always that: its caller knows the estimates.
    """
    first_rate = config.learning_rate if first_rate is None else first_rate
    if config.decay_when_stalled:
        return optax.constant_schedule(first_rate)
    decay_begins = max(config.constant_epochs - 1, 0)
    decay = optax.exponential_decay(
        init_value=learning_rate(config, decay_begins + 1) / config.learning_rate,
        transition_steps=1,
        decay_rate=1 / config.decay_divisor,
        transition_begin=decay_begins,
        staircase=True,
    )

    def rate_of_epoch(epoch: ArrayLike) -> jax.Array:
        relative = decay(jnp.minimum(epoch, config.epochs - 1))
        return jnp.asarray(first_rate * relative)

    return rate_of_epoch


def make_optimizer(
    config: TrainConfig,
    windows_per_epoch: int,
    first_rate: ArrayLike | None = None,
    weight_decay: ArrayLike | None = None,
) -> optax.GradientTransformation:
    """Plain SGD, or Adam, after clipping: a gradient of norm above `clip_norm` is scaled to it.

    The norm is taken over all parameters together, of the gradient of the loss
    summed over time steps and averaged over the batch. `first_rate` is as for `make_schedule`.
    `weight_decay` times the parameters, biases too, is added to the clipped gradient, as in
    Merity et al. (2018), or to what Adam makes of it (Loshchilov & Hutter 2019); an L2 penalty
    would be clipped, and scaled by Adam, with the gradient. Adam has optax's constants.
    """
    schedule = make_schedule(config, first_rate)

    def rate_of_step(step: ArrayLike) -> ArrayLike:
        return schedule(jnp.floor_divide(step, windows_per_epoch))

    rule = [_adam()] if config.optimizer == "adam" else []
    decay = optax.identity()
    if weight_decay is not None:
        decay = optax.add_decayed_weights(cast(Any, weight_decay))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        # As one, so that the state of SGD is the same in checkpoints of any version.
        optax.chain(*rule, decay, optax.scale_by_learning_rate(rate_of_step)),
    )


def _adam() -> optax.GradientTransformation:
    """optax's, which mixes types of numbers, whatever promotion its caller allows."""
    adam = optax.scale_by_adam()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def add_to_mean(mean: ModelParams, params: ModelParams, count: Step) -> ModelParams:
    """The mean of `count` parameters, from that of all but the last and the last.

    Of optax's averages, `ema` forgets; this is a step of 1 / `count` by `incremental_update`,
    whose result for a count of 1 is `params` to the bit.
    """
    new, old = cast(tuple[Any, Any], (params, mean))
    return cast(ModelParams, optax.incremental_update(new, old, 1 / count))
