import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import paper_model
import pytest
from layer_examples import ADMITTED, make

from zaremba_jax.array_types import HiddenState, LSTMState, RecurrentMasks
from zaremba_jax.cells import CELLS, project_inputs, step

pytestmark = pytest.mark.usefixtures("float64")

FEATURES, HIDDEN, BATCH = 3, 5, 4


def example(cell) -> Any:
    """A random layer, input and state."""
    (params, inputs, state), _, _ = make(1, BATCH, FEATURES, HIDDEN, "float64", cell)
    return params, inputs[0], state


def advance(params, x, state, **masks) -> Any:
    return step(params, project_inputs(params, x), state, RecurrentMasks(**masks))


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), actual, expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_step_computes_the_paper_s_equations(cell, masked):
    params, x, state = example(cell)
    rng = np.random.default_rng(1)
    masks = {name: jnp.asarray(rng.uniform(size=(BATCH, HIDDEN))) for name in ADMITTED[cell]}
    masks = masks if masked else {}
    new_state = advance(params, x, state, **masks)
    for b in range(BATCH):
        expected = paper_model.step(
            jax.tree.map(np.asarray, params),
            np.asarray(x[b]),
            tuple(np.asarray(part[b]) for part in vars(state).values()),
            **{name: np.asarray(mask[b]) for name, mask in masks.items()},
        )
        assert_close(tuple(part[b] for part in vars(new_state).values()), expected)


# Flax's names for the gates, in our order.
@pytest.mark.parametrize(
    ("cell", "flax_cell", "gates"),
    [
        ("lstm", nn.LSTMCell, "fiog"),
        ("lstm", nn.OptimizedLSTMCell, "fiog"),
        ("gru", nn.GRUCell, "rzn"),
        ("tanh", nn.SimpleCell, ""),
    ],
)
def test_step_equals_flax_with_the_same_weights(cell, flax_cell, gates):
    params, x, state = example(cell)
    biased = "h" if cell == "lstm" else "i"  # the product that flax adds the bias to
    weights = {}
    for k, gate in enumerate(gates or [""]):
        part = slice(k * HIDDEN, (k + 1) * HIDDEN)
        weights[f"i{gate}"] = {"kernel": params.input_weights[:, part]}
        weights[f"h{gate}"] = {"kernel": params.recurrent_weights[:, part]}
        weights[f"{biased}{gate}"]["bias"] = params.bias[part]
    if cell == "gru":
        weights["hn"]["bias"] = jnp.zeros(HIDDEN)  # the candidate's second bias, not in ours
    carry = (state.cell, state.hidden) if cell == "lstm" else state.hidden
    new_carry, _ = flax_cell(HIDDEN, param_dtype=jnp.float64).apply({"params": weights}, carry, x)
    record = LSTMState(*reversed(new_carry)) if cell == "lstm" else HiddenState(new_carry)
    assert_close(advance(params, x, state), record)


def test_closed_forget_gate_erases_the_past_and_open_one_keeps_it():
    params, _, state = example("lstm")
    cut = dataclasses.replace(params, recurrent_weights=jnp.zeros_like(params.recurrent_weights))
    # forget, write, output, update
    erase = jnp.repeat(jnp.asarray([-1e3, -1e3, 1e3, 0.0]), HIDDEN)[None, :].repeat(BATCH, 0)
    keep = jnp.repeat(jnp.asarray([1e3, -1e3, 1e3, 0.0]), HIDDEN)[None, :].repeat(BATCH, 0)
    erased, kept = (step(cut, projected, state) for projected in (erase, keep))
    np.testing.assert_array_equal(vars(erased)["cell"], 0)
    np.testing.assert_array_equal(vars(kept)["cell"], state.cell)


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_at_rate_1_freezes_the_state_and_at_rate_0_changes_nothing(cell):
    params, x, state = example(cell)
    keeps = [name for name in ADMITTED[cell] if name.startswith("zoneout")]

    def advance_at(rate):
        return advance(params, x, state, **dict.fromkeys(keeps, jnp.full((BATCH, HIDDEN), rate)))

    jax.tree.map(np.testing.assert_array_equal, advance_at(1.0), state)
    assert_close(advance_at(0.0), advance(params, x, state))


@pytest.mark.parametrize(
    ("cell", "mask", "reason"),
    [
        ("gru", "zoneout_cell", "zoneout_cell: the gru cell has no cell state c"),
        ("tanh", "update", "update: the tanh cell writes no update; leave its mask out"),
    ],
)
def test_mask_that_a_cell_has_no_place_for_is_refused(cell, mask, reason):
    with pytest.raises(ValueError, match=reason):
        advance(*example(cell), **{mask: jnp.ones((BATCH, HIDDEN))})
