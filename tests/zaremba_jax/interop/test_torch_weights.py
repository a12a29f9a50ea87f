import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaremba_jax.cells import merge_biases
from zaremba_jax.config import override
from zaremba_jax.interop.torch_weights import (
    infer_config,
    lstm_from_torch,
    lstm_to_torch,
    model_from_torch,
    model_to_torch,
)
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.rnn import deep_rnn, zero_state

TIME, BATCH, FEATURES, HIDDEN = 5, 2, 3, 4
INPUTS = np.random.default_rng(0).normal(size=(TIME, BATCH, FEATURES)).astype(np.float32)


def torch_state(layers=2, bias=True):
    """Random weights as torch.nn.LSTM names them, with two biases."""
    state, rng = {}, np.random.default_rng(1)
    for n in range(layers):
        state[f"weight_ih_l{n}"] = (4 * HIDDEN, HIDDEN if n else FEATURES)
        state[f"weight_hh_l{n}"] = (4 * HIDDEN, HIDDEN)
        if bias:
            state[f"bias_ih_l{n}"] = state[f"bias_hh_l{n}"] = (4 * HIDDEN,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in state.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_lstm(state, x):
    """The equations in torch's documentation of `torch.nn.LSTM`, in NumPy, from a zero state."""
    for n in range(sum(name.startswith("weight_ih") for name in state)):
        w_ih, w_hh = state[f"weight_ih_l{n}"], state[f"weight_hh_l{n}"]
        b_ih, b_hh = state.get(f"bias_ih_l{n}", 0), state.get(f"bias_hh_l{n}", 0)
        h = c = np.zeros((BATCH, HIDDEN))
        outputs = []
        for x_t in x:
            gates = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh
            i, f, g, o = np.split(gates, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        x = np.stack(outputs)
    return x


def ours(layers):
    return deep_rnn(layers, jnp.asarray(INPUTS), zero_state(layers, BATCH))[0]


@pytest.mark.parametrize("bias", [True, False])
def test_lstm_from_torch_computes_the_same(bias):
    state = torch_state(bias=bias)
    expected = torch_lstm(state, INPUTS)
    np.testing.assert_allclose(ours(lstm_from_torch(state)), expected, rtol=1e-4, atol=1e-5)


def test_lstm_to_torch_and_back_is_the_same_to_the_bit():
    layers = lstm_from_torch(torch_state(), "")
    state = lstm_to_torch(layers, "rnn.")
    assert not state["rnn.bias_hh_l1"].any()
    jax.tree.map(np.testing.assert_array_equal, lstm_from_torch(state, "rnn."), layers)
    plain = {name.removeprefix("rnn."): array for name, array in state.items()}
    np.testing.assert_allclose(torch_lstm(plain, INPUTS), ours(layers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_double_precision_stays_where_jax_has_it(bias):
    wide = {name: x.astype(np.float64) / 3 for name, x in torch_state(bias=bias).items()}
    half = {name: x.astype(np.float16) for name, x in wide.items()}
    with jax.enable_x64(True):
        layers, single = lstm_from_torch(wide), lstm_from_torch(half)
        assert {x.dtype for x in jax.tree.leaves(layers)} == {jnp.dtype("float64")}
        np.testing.assert_array_equal(lstm_to_torch(layers)["weight_hh_l0"], wide["weight_hh_l0"])
    for narrow in (single, lstm_from_torch(wide)):
        assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}


def test_torch_itself_agrees():
    torch = pytest.importorskip("torch")
    module = torch.nn.LSTM(FEATURES, HIDDEN, num_layers=2)
    layers = lstm_from_torch(module.state_dict())
    with torch.no_grad():
        expected = module(torch.tensor(INPUTS))[0].numpy()
        np.testing.assert_allclose(ours(layers), expected, rtol=1e-4, atol=1e-5)
        other = torch.nn.LSTM(FEATURES, HIDDEN, num_layers=2)
        state = {name: torch.tensor(x) for name, x in lstm_to_torch(layers).items()}
        other.load_state_dict(state)
        np.testing.assert_allclose(other(torch.tensor(INPUTS))[0], expected, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"embedding_size": 5}], ids=str)
def test_whole_model_goes_to_torchs_names_and_back(changes):
    config = override(QUICK, layers=2, hidden_size=3, dropout=0.0, corpus="files", **changes)
    params = init_params(config.model, 7, key=jax.random.key(0))
    state = model_to_torch(params)
    assert state["decoder.weight"].shape == (7, 3)
    restored = model_from_torch(state)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert infer_config(restored) == config


def test_model_in_double_precision_stays_so(float64):
    params = init_params(override(QUICK, hidden_size=3).model, 7, key=jax.random.key(0))
    assert params.embedding.dtype == jnp.float64
    restored = model_from_torch(model_to_torch(params))
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_second_bias_goes_to_torchs():
    config = override(QUICK, layers=1, hidden_size=HIDDEN, second_bias=True)
    layers = init_params(config.model, 3, key=jax.random.key(0)).layers
    state = lstm_to_torch(layers)
    assert state["bias_hh_l0"].any()
    (restored,) = lstm_from_torch(state)
    np.testing.assert_allclose(restored.bias, merge_biases(layers[0]).bias, rtol=1e-6)
    assert infer_config(init_params(config.model, 3, key=jax.random.key(0))).model.second_bias


REFUSED = [
    ({}, "weight_ih_l0: is missing; give the state_dict of a torch.nn.LSTM"),
    ({"weight_ih_l0": (16, 3)}, "weight_hh_l0: is missing"),
    ({"weight_ih_l0": (12, 3), "weight_hh_l0": (12, 4)}, "has 12 rows for 4 units, where an LSTM"),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (12, 4), "bias_ih_l0": (8,)},
        "*_l0: the arrays have 8, 12, 16 rows, but those of one layer must agree",
    ),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "weight_hh_l1": (16, 4)},
        "weight_ih_l1: is missing",
    ),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "weight_ih_l0_reverse": (16, 3)},
        "weight_ih_l0_reverse: only a unidirectional torch.nn.LSTM without projections",
    ),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 2), "weight_hr_l0": (2, 4)},
        "weight_hr_l0: only a unidirectional torch.nn.LSTM without projections",
    ),
]


@pytest.mark.parametrize(("shapes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_state_of_another_module_is_refused(shapes, reason):
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=re.escape(reason)):
        lstm_from_torch(state)


def test_other_cells_and_missing_parts_are_refused():
    gru = init_params(override(QUICK, cell="gru", hidden_size=2).model, 3, key=jax.random.key(0))
    sizes = override(QUICK, hidden_size=2, output_size=3).model
    with pytest.raises(ValueError, match="layers of 2, 3 units"):
        model_to_torch(init_params(sizes, 3, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="cell=gru: only LSTM layers convert to torch"):
        lstm_to_torch(gru.layers)
    with pytest.raises(ValueError, match=r"encoder\.weight, decoder\.weight: missing; name the"):
        model_from_torch({"decoder.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"rnn\.weight_ih_l0: is missing"):
        model_from_torch({"encoder.weight": np.zeros((3, 2))})


@pytest.mark.parametrize("missing", ["encoder.weight", "decoder.weight"])
def test_tied_weights_may_be_there_once(missing):
    config = override(QUICK, hidden_size=3, tie_weights=True)
    params = init_params(config.model, 7, key=jax.random.key(0))
    state = model_to_torch(params)
    del state[missing]
    jax.tree.map(np.testing.assert_array_equal, model_from_torch(state), params)


def test_model_without_a_bias_of_its_decoder_has_zeros():
    params = init_params(override(QUICK, hidden_size=3).model, 7, key=jax.random.key(0))
    state = model_to_torch(params)
    del state["decoder.bias"]
    restored = model_from_torch(state)
    assert not restored.softmax.bias.any()
    np.testing.assert_array_equal(restored.embedding, params.embedding)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_no_part_of_the_names(prefix):
    params = init_params(override(QUICK, hidden_size=3).model, 7, key=jax.random.key(0))
    wrapped = {f"{prefix}{name}": x for name, x in model_to_torch(params).items()}
    jax.tree.map(np.testing.assert_array_equal, model_from_torch(wrapped), params)


def test_parameters_may_come_as_pairs_of_name_and_array():
    state = torch_state()
    expected = lstm_from_torch(state)
    jax.tree.map(np.testing.assert_array_equal, lstm_from_torch(iter(state.items())), expected)
