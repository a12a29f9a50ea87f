"""Every regularizer, through three hooks: masks, dropped weights, and a penalty on the loss.

The paper's own, dropout on the non-recurrent connections, is `dropout` with
`mask_each="step"`. The others are those that the paper names or is compared to; all can
be combined. A rate of 0 is off. Weight decay alone is not here, but in `optimizer`. `Rates` holds
the settings that are on, as plain or traced numbers, so that models with different rates can train
side by side under `vmap`.

References:
  Zaremba et al. (2014): https://arxiv.org/abs/1409.2329
  Gal & Ghahramani (2016): https://arxiv.org/abs/1512.05287
  Krueger et al. (2017), zoneout: https://arxiv.org/abs/1606.01305
  Merity et al. (2018): https://arxiv.org/abs/1708.02182
  Semeniuta et al. (2016): https://arxiv.org/abs/1603.05118
  Wan et al. (2013), DropConnect: https://proceedings.mlr.press/v28/wan13.html
  Zou & Hastie (2005): https://doi.org/10.1111/j.1467-9868.2005.00503.x
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import (
    Key,
    LayerParams,
    Masks,
    ModelParams,
    Outputs,
    RecurrentMasks,
    Scalar,
    Tokens,
)
from zaremba_jax.config import Config, RegularizerConfig
from zaremba_jax.errors import InputError

Rates = Mapping[str, float | Scalar]
# The methods with masks on a layer's connections through time. Do not add to this tuple: it would
# renumber the sites, and so change their masks. Give a new method numbers after these, in
# `_site_keys`.
_THROUGH_TIME = ("hidden_dropout", "update_dropout", "zoneout_hidden", "zoneout_cell")


def active_rates(config: RegularizerConfig) -> Rates:
    """The strength of every method that is on, by the name of its setting.

    Rounded to float32 as a traced rate is, so that both draw the same masks.
    """
    values = dataclasses.asdict(config)
    return {
        name: float(np.float32(x))
        for name, x in values.items()
        if isinstance(x, int | float) and x > 0
    }


def dropout_mask(rate: float | Scalar, shape: tuple[int, ...], *, key: Key) -> jax.Array:
    """The operator D's mask: 1 / (1 - rate) where a unit is kept, 0 where it is dropped.

    The paper (section 3.2) names the zeros only. Scaled in this way, the expectation is 1, and
    evaluation needs no rescaling.

    >>> mask = dropout_mask(0.5, (2, 3), key=jax.random.key(0))
    >>> sorted(set(mask.ravel().tolist()))
    [0.0, 2.0]
    """
    keep = _kept(rate)
    return jnp.where(_happens(keep, shape, key=key), 1 / keep, 0.0)


def zoneout_mask(rate: float | Scalar, shape: tuple[int, ...], *, key: Key) -> jax.Array:
    """1 where a unit keeps its previous value, 0 elsewhere (Krueger et al. 2017)."""
    return jnp.where(_happens(rate, shape, key=key), 1.0, 0.0)


def _kept(rate: float | Scalar) -> float | Scalar:
    """1 - rate, rounded to float32 for a setting as it is for a traced rate.

    Otherwise 1 / (1 - rate) could differ between the two.
    """
    return float(np.float32(1 - rate)) if isinstance(rate, float) else 1 - rate


def _happens(chance: float | Scalar, shape: tuple[int, ...], *, key: Key) -> jax.Array:
    """True with that probability, from float32 draws whether it is a setting or a traced number."""
    return jax.random.bernoulli(key, jnp.asarray(chance, jnp.float32), shape)


def sample_masks(
    config: Config, rates: Rates, tokens: Tokens, vocabulary_size: int, *, key: Key
) -> Masks:
    """Samples all the noise of one window except that on the weights (see `drop_weights`).

    By the name of the setting:

        dropout          D on each layer's input and on the last output (Zaremba et al. 2014)
        input_dropout    the rate of the first of these L + 1 sites, and of the last, if it is
        output_dropout   not that of `dropout` (Merity et al. 2018)
        hidden_dropout   D on h[t-1], which the paper argues against; with `mask_each="window"`
                         and `dropout`, that of Gal & Ghahramani (2016)
        update_dropout   D on what a cell writes (Semeniuta et al. 2016)
        word_dropout     D on all occurrences of a word in a stream's window together (Gal &
                         Ghahramani 2016, section 4.2)
        zoneout_hidden   units of h, and of c, that keep their previous values (Krueger et al.
        zoneout_cell     2017)

    Args:
      config: the sizes, and `mask_each`: one dropout mask per time step or per window.
      rates: what is on, from `active_rates`.
      tokens: the window's input.
      vocabulary_size: the number of distinct tokens.
      key: the window's own key; the same key gives the same masks.

    Returns:
      The masks; what is off is None. Each method draws from its own keys, so that
      turning one on does not change the masks of the others.
    """
    (time, batch), layers, units = tokens.shape, config.model.layers, config.model.layer_sizes
    steps = time if config.regularizers.mask_each == "step" else 1
    keys = _site_keys(layers, key)

    def draw(
        mask: Callable[..., jax.Array], method: str, layer: int, *shape: int
    ) -> jax.Array | None:
        return mask(rates[method], shape, key=keys[method, layer]) if method in rates else None

    def between_layers(site: int, size: int) -> jax.Array | None:
        rate = rates.get(_rate_name(config.regularizers, rates, site, layers))
        shape = steps, batch, size
        return None if rate is None else dropout_mask(rate, shape, key=keys["dropout", site])

    def through_time(layer: int) -> RecurrentMasks:
        dropped, zoned = (steps, batch, units[layer]), (time, batch, units[layer])
        return RecurrentMasks(
            hidden=draw(dropout_mask, "hidden_dropout", layer, *dropped),
            update=draw(dropout_mask, "update_dropout", layer, *dropped),
            zoneout_hidden=draw(zoneout_mask, "zoneout_hidden", layer, *zoned),
            zoneout_cell=draw(zoneout_mask, "zoneout_cell", layer, *zoned),
        )

    *inputs, output = map(between_layers, range(layers + 1), (config.model.features, *units))
    words = draw(dropout_mask, "word_dropout", 0, vocabulary_size, batch)
    recurrent = tuple(map(through_time, range(layers)))
    return Masks(
        words=None if words is None else words[tokens, jnp.arange(batch)[None, :]][..., None],
        inputs=tuple(inputs) if jax.tree.leaves(inputs) else None,
        output=output,
        recurrent=recurrent if jax.tree.leaves(recurrent) else None,
    )


def _rate_name(config: RegularizerConfig, rates: Rates, site: int, layers: int) -> str:
    """The setting that holds the rate of one of the L + 1 sites; `dropout`, unless it has its own.

    In a sweep the rate of a site may be on, in `rates`, though it is 0 in `config`.
    """
    own = {0: "input_dropout", layers: "output_dropout"}.get(site, "dropout")
    return own if own in rates or getattr(config, own) is not None else "dropout"


def _site_keys(layers: int, key: Key) -> dict[tuple[str, int], Key]:
    """A key of its own for every site where noise is drawn, by method and layer.

    A site's number decides its masks. New methods take the numbers after these, so that what is
    here draws the same masks for ever.
    """
    sites = [("dropout", site) for site in range(layers + 1)] + [("word_dropout", 0)]
    sites += [(method, layer) for layer in range(layers) for method in _THROUGH_TIME]
    return {site: jax.random.fold_in(key, number) for number, site in enumerate(sites)}


def expected_masks(config: Config) -> Masks | None:
    """The masks for evaluation: None, or zoneout's expectation (Krueger et al. 2017)."""
    rates = active_rates(config.regularizers)
    expected = {
        name: jnp.full((1, 1, 1), rates[name])
        for name in ("zoneout_hidden", "zoneout_cell")
        if name in rates
    }
    if not expected:
        return None
    return Masks(recurrent=(RecurrentMasks(**expected),) * config.model.layers)


def drop_weights(rates: Rates, params: ModelParams, *, key: Key | None) -> ModelParams:
    """DropConnect on the recurrent weights (Wan et al. 2013; as in Merity et al. 2018).

    Each weight from h[t-1] is kept with probability p = 1 - `dropconnect` and divided by p;
    the same ones are dropped at all time steps and in all streams of the window.

    Raises:
      InputError: `dropconnect` is on and `key` is None.
    """
    if "dropconnect" not in rates:
        return params
    if key is None:
        raise InputError("dropconnect is on and has no key to draw from; give one")
    keep = _kept(rates["dropconnect"])

    def drop(layer: LayerParams, layer_key: Key) -> LayerParams:
        weights = layer.recurrent_weights
        kept = _happens(keep, weights.shape, key=layer_key)
        dropped = jnp.where(kept, weights / keep, 0).astype(weights.dtype)
        return dataclasses.replace(layer, recurrent_weights=dropped)

    keys = jax.random.split(key, len(params.layers))
    return dataclasses.replace(params, layers=tuple(map(drop, params.layers, keys)))


def penalty(rates: Rates, params: ModelParams, outputs: Outputs, dropped: Outputs) -> Scalar:
    """The penalty added to a window's loss, itself summed over time and averaged over the batch.

        l1 * sum |w|  +  l2 * sum w^2           over all weights w
        activation_l2 * D(h[t])^2
        temporal_activation_l2 * (h[t] - h[t-1])^2

    The first two together are the elastic net (Zou & Hastie 2005); biases are exempt. The
    last two (Merity et al. 2018, section 4.6) are on the last layer's outputs, summed over
    time and averaged over batch and units.

    Args:
      rates: what is on, from `active_rates`.
      params: the model; its embedding may hold only a window's rows unless
        `penalizes_every_word`.
      outputs: h[t] of the last layer; if devices share a batch, each stream is scaled by the
        square root of its weight, which squaring turns into the weight.
      dropped: D(h[t]), scaled likewise.
    """
    total = jnp.zeros((), outputs.dtype)
    for name, size in (("l1", jnp.abs), ("l2", jnp.square)):
        if name in rates:
            total += rates[name] * sum(size(w).sum() for w in _weights(params))
    for name, activations in (
        ("activation_l2", dropped),
        ("temporal_activation_l2", outputs[1:] - outputs[:-1]),
    ):
        if name in rates:
            total += rates[name] * jnp.square(activations).mean(axis=(1, 2)).sum()
    return total


def penalizes_every_word(rates: Rates) -> bool:
    """Whether even words that do not occur in a window have a gradient, or decay.

    If not, the window's loss is given only the rows of its own words.
    """
    return not rates.keys().isdisjoint(("l1", "l2", "weight_decay"))


def _weights(params: ModelParams) -> list[jax.Array]:
    """Every matrix of the model; a tied one counts once."""
    layers = [w for p in params.layers for w in (p.input_weights, p.recurrent_weights)]
    softmax = params.softmax.weights
    return [params.embedding, *layers] + ([] if softmax is None else [softmax])
