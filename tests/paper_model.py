"""The paper's model as plain NumPy loops, written from its text, one example at a time.

Independent of the library on purpose: no shared code, no vectorisation over time,
batch or gates, so that agreement means something.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_unit_layer(params, x, h, c):
    """Section 3.1: i, f, o, g = sigm, sigm, sigm, tanh of T(x, h); c = f*c + i*g; h = o*tanh(c)."""
    n = len(h)
    affine = np.concatenate([params.input_weights, params.recurrent_weights]).T
    gates = affine @ np.concatenate([x, h]) + params.bias
    f, i, o = (sigmoid(gates[k * n : (k + 1) * n]) for k in range(3))
    g = np.tanh(gates[3 * n :])
    c = f * c + i * g
    return o * np.tanh(c), c


def run(params, tokens, state, masks=None):
    """Steps all layers at each time step, as the paper draws it.

    Args:
      params: a `ModelParams` of NumPy arrays.
      tokens: [time, batch].
      state: (h, c) a layer, each [batch, hidden].
      masks: a list of L + 1 arrays [time, batch, hidden], or None.

    Returns:
      Logits [time, batch, vocabulary], and the state after the last step.
    """
    time, batch = tokens.shape
    layers = params.layers
    state = [(h.copy(), c.copy()) for h, c in state]
    logits = np.empty((time, batch, len(params.softmax.bias)))
    for t in range(time):
        for b in range(batch):
            x = params.embedding[tokens[t, b]]
            for depth in range(len(layers)):
                x = x if masks is None else masks[depth][t, b] * x
                h, c = lstm_unit_layer(layers[depth], x, state[depth][0][b], state[depth][1][b])
                state[depth][0][b], state[depth][1][b] = h, c
                x = h
            x = x if masks is None else masks[-1][t, b] * x
            logits[t, b] = params.softmax.weights.T @ x + params.softmax.bias
    return logits, state


def loss(params, tokens, targets, state, masks=None):
    """Nats summed over the time steps and averaged over the batch."""
    logits, _ = run(params, tokens, state, masks)
    total = 0.0
    for t, b in np.ndindex(tokens.shape):
        p = np.exp(logits[t, b]) / np.exp(logits[t, b]).sum()
        total -= np.log(p[targets[t, b]])
    return total / tokens.shape[1]
