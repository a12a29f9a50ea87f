"""The model as plain NumPy loops, written from the papers, one example at a time.

Independent of the library on purpose: no shared code, no vectorisation over time,
batch or gates, so that agreement means something.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

Mask = np.ndarray | int


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, a, h, c, update_mask):
    """Zaremba et al. (2014), section 3.1; x and a: what f, i, o, g get from input and past."""
    f, i, o = (sigmoid(x[k] + a[k]) for k in range(3))
    g = np.tanh(x[3] + a[3])
    c = f * c + i * (g * update_mask)  # Semeniuta et al. (2016), equation 12
    return o * np.tanh(c), c


def gru(x, a, h, update_mask):
    """Cho et al. (2014), the reset gate after the matrix product; x and a likewise for r, z, n."""
    r, z = (sigmoid(x[k] + a[k]) for k in range(2))
    n = np.tanh(x[2] + r * a[2])
    return ((1 - z) * (n * update_mask) + z * h,)


def tanh(x, a, h, update_mask):
    """Elman (1990)."""
    return (np.tanh(x[0] + a[0]),)


CELLS = {"lstm": lstm, "gru": gru, "tanh": tanh}


def step(
    params,
    x,
    state,
    *,
    hidden: Mask = 1,
    update: Mask = 1,
    zoneout_hidden: Mask = 0,
    zoneout_cell: Mask = 0,
):
    """One layer, one example, one time step.

    Args:
      params: a `LayerParams` of NumPy arrays.
      x: [features].
      state: (h, c) or (h,), each [hidden].
      hidden, update, zoneout_hidden, zoneout_cell: masks, [hidden] each.

    Returns:
      The state after the step.
    """
    size = len(state[0])
    gates = [slice(k, k + size) for k in range(0, len(params.bias), size)]
    bias = params.bias + (0 if params.second_bias is None else params.second_bias)
    from_input = [params.input_weights[:, g].T @ x + bias[g] for g in gates]
    from_past = [params.recurrent_weights[:, g].T @ (hidden * state[0]) for g in gates]
    new = CELLS[params.cell](from_input, from_past, *state, update)
    # Krueger et al. (2017), section 3.2.
    keeps = (zoneout_hidden, zoneout_cell)[: len(state)]
    return tuple(k * old + (1 - k) * n for k, old, n in zip(keeps, state, new, strict=True))


def at(mask, t, b):
    """A mask's row for one time step and example; an axis of size 1 is broadcast."""
    return 1 if mask is None else mask[t % len(mask), b % mask.shape[1]]


class Results(NamedTuple):
    logits: np.ndarray  # [time, batch, vocabulary]
    state: list
    outputs: np.ndarray  # [time, batch, hidden], h[t] of the last layer
    dropped: np.ndarray  # the same after dropout


def run(params, tokens, state, masks=None):
    """Steps all layers at each time step, as in the paper's figures.

    Args:
      params: a `ModelParams` of NumPy arrays.
      tokens: [time, batch].
      state: (h, c) or (h,) per layer, each [batch, hidden].
      masks: a `Masks` of NumPy arrays, or None.
    """
    layers = params.layers
    state = [[part.copy() for part in layer] for layer in state]
    inputs = masks.inputs if masks and masks.inputs else [None] * len(layers)
    through_time = masks.recurrent if masks and masks.recurrent else [None] * len(layers)
    softmax = params.embedding.T if params.softmax.weights is None else params.softmax.weights
    shape = (*tokens.shape, softmax.shape[0])
    logits = np.empty((*tokens.shape, softmax.shape[1]))
    outputs, dropped = np.empty(shape), np.empty(shape)
    for t, b in np.ndindex(tokens.shape):
        x = params.embedding[tokens[t, b]] * at(masks and masks.words, t, b)
        for depth, layer in enumerate(layers):
            noise = vars(through_time[depth]) if through_time[depth] else {}
            noise = {name: at(mask, t, b) for name, mask in noise.items() if mask is not None}
            before = [part[b] for part in state[depth]]
            after = step(layer, x * at(inputs[depth], t, b), before, **noise)
            for part, value in zip(state[depth], after, strict=True):
                part[b] = value
            x = after[0]
        outputs[t, b], dropped[t, b] = x, x * at(masks and masks.output, t, b)
        logits[t, b] = softmax.T @ dropped[t, b] + params.softmax.bias
    return Results(logits, state, outputs, dropped)


def nats(logits, targets):
    """Nats of each target, [time, batch]."""
    result = np.empty(targets.shape)
    for t, b in np.ndindex(targets.shape):
        p = np.exp(logits[t, b]) / np.exp(logits[t, b]).sum()
        result[t, b] = -np.log(p[targets[t, b]])
    return result


def penalty(params, rates, outputs, dropped):
    """Zou & Hastie (2005) over all weights; Merity et al. (2018), section 4.6, over activations."""
    weights = [params.embedding]
    weights += [w for p in params.layers for w in (p.input_weights, p.recurrent_weights)]
    weights += [] if params.softmax.weights is None else [params.softmax.weights]
    total = 0.0
    for w in np.concatenate([w.ravel() for w in weights]):
        total += rates.get("l1", 0) * abs(w) + rates.get("l2", 0) * w**2
    share = 1 / outputs[0].size  # the mean over batch and units
    for t, b, u in np.ndindex(outputs.shape):
        total += rates.get("activation_l2", 0) * share * dropped[t, b, u] ** 2
        if t:
            change = outputs[t, b, u] - outputs[t - 1, b, u]
            total += rates.get("temporal_activation_l2", 0) * share * change**2
    return total


def loss(params, tokens, targets, state, masks=None, rates=None, weight_masks=None):
    """Nats summed over the time steps and averaged over the batch, plus the penalty.

    `weight_masks`, one per layer, multiply the recurrent weights.
    """
    noisy = params
    if weight_masks is not None:
        layers = tuple(
            dataclasses.replace(p, recurrent_weights=p.recurrent_weights * mask)
            for p, mask in zip(params.layers, weight_masks, strict=True)
        )
        noisy = dataclasses.replace(params, layers=layers)
    results = run(noisy, tokens, state, masks)
    total = nats(results.logits, targets).sum() / tokens.shape[1]
    return total + penalty(params, rates or {}, results.outputs, results.dropped)
