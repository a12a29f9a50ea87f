import functools
import pickle
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaremba_jax.cells import merge_biases
from zaremba_jax.config import override
from zaremba_jax.errors import InputError
from zaremba_jax.interop.torch_weights import (
    infer_config,
    layers_from_torch,
    layers_to_torch,
    model_from_torch,
    model_to_torch,
    read_torch_file,
)
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK
from zaremba_jax.rnn import deep_rnn, zero_state

TIME, BATCH, FEATURES, HIDDEN = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}  # of torch's modules
INPUTS = np.random.default_rng(0).normal(size=(TIME, BATCH, FEATURES)).astype(np.float32)


def torch_state(module="LSTM", bias=True):
    """Random weights of two layers as torch names them, with two biases."""
    rows, state, rng = GATES[module] * HIDDEN, {}, np.random.default_rng(1)
    for n in range(2):
        state[f"weight_ih_l{n}"] = (rows, HIDDEN if n else FEATURES)
        state[f"weight_hh_l{n}"] = (rows, HIDDEN)
        if bias:
            state[f"bias_ih_l{n}"] = state[f"bias_hh_l{n}"] = (rows,)
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in state.items()}
    for name in state if module == "GRU" else ():
        if name.startswith("bias_hh"):
            state[name][2 * HIDDEN :] = 0
    return state


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_step(module, of_inputs, of_past, h, c):
    """The equations in torch's documentation of its modules, in NumPy: the next h and c."""
    if module == "RNN":
        return np.tanh(of_inputs + of_past), c
    if module == "GRU":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(x, 3, axis=1) for x in (of_inputs, of_past))
        z = sigmoid(x_z + h_z)
        return (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h, c
    i, f, g, o = np.split(of_inputs + of_past, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def torch_module(module, state, x):
    """The outputs of torch's module from a zero state."""
    for n in range(2):
        w_ih, w_hh = state[f"weight_ih_l{n}"], state[f"weight_hh_l{n}"]
        b_ih, b_hh = state.get(f"bias_ih_l{n}", 0), state.get(f"bias_hh_l{n}", 0)
        h = c = np.zeros((BATCH, HIDDEN))
        outputs = []
        for x_t in x:
            h, c = torch_step(module, x_t @ w_ih.T + b_ih, h @ w_hh.T + b_hh, h, c)
            outputs.append(h)
        x = np.stack(outputs)
    return x


def ours(layers):
    return deep_rnn(layers, jnp.asarray(INPUTS), zero_state(layers, BATCH))[0]


@pytest.mark.parametrize("module", GATES)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_from_torch_compute_the_same_and_go_back(module, bias):
    state = torch_state(module, bias)
    expected = torch_module(module, state, INPUTS)
    layers = layers_from_torch(state, nonlinearity="tanh")
    np.testing.assert_allclose(ours(layers), expected, rtol=1e-4, atol=1e-5)
    state = layers_to_torch(layers, "rnn.")
    assert not state["rnn.bias_hh_l1"].any()
    again = layers_from_torch(state, "rnn.", "tanh")
    jax.tree.map(np.testing.assert_array_equal, again, layers)


@pytest.mark.parametrize(("bias", "narrow"), [(True, np.float16), (False, jnp.bfloat16)])
def test_double_precision_stays_where_jax_has_it_and_less_becomes_single(bias, narrow):
    wide = {name: x.astype(np.float64) / 3 for name, x in torch_state(bias=bias).items()}
    half = {name: x.astype(narrow) for name, x in wide.items()}
    with jax.enable_x64(True):
        layers, single = layers_from_torch(wide), layers_from_torch(half)
        assert {x.dtype for x in jax.tree.leaves(layers)} == {jnp.dtype("float64")}
        np.testing.assert_array_equal(layers_to_torch(layers)["weight_hh_l0"], wide["weight_hh_l0"])
    for narrow in (single, layers_from_torch(wide)):
        assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("module", GATES)
def test_torch_itself_agrees(module):
    torch = pytest.importorskip("torch")
    make = functools.partial(getattr(torch.nn, module), FEATURES, HIDDEN, num_layers=2)
    theirs, back = make(bias=module != "GRU"), make()
    layers = layers_from_torch(theirs.state_dict(), nonlinearity="tanh")
    with torch.no_grad():
        expected = theirs(torch.tensor(INPUTS))[0].numpy()
        np.testing.assert_allclose(ours(layers), expected, rtol=1e-4, atol=1e-5)
        back.load_state_dict({n: torch.tensor(x) for n, x in layers_to_torch(layers).items()})
        np.testing.assert_allclose(back(torch.tensor(INPUTS))[0], expected, atol=1e-5)
        half = theirs.bfloat16()
        narrow = layers_from_torch(half.named_parameters(), nonlinearity="tanh")
        expected = half.float()(torch.tensor(INPUTS))[0].numpy()
        np.testing.assert_allclose(ours(narrow), expected, rtol=1e-4, atol=1e-5)


def test_pickle_is_refused_with_the_line_that_converts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="is a pickle, which can run code and is not") as refused:
        read_torch_file("my model.pt")
    command = str(refused.value).partition("first): ")[2]
    assert shlex.split(command)[-2:] == ["my model.pt", "my model.safetensors"]
    torch = pytest.importorskip("torch")
    embedding, decoder = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5)
    decoder.weight = embedding.weight
    module = torch.nn.ModuleDict(
        {"encoder": embedding, "rnn": torch.nn.LSTM(3, 3), "decoder": decoder}
    )
    torch.save(module.state_dict(), "my model.pt")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    params = model_from_torch(read_torch_file("my model.safetensors"))
    np.testing.assert_array_equal(params.embedding, embedding.weight.detach())


def test_pickle_of_an_old_torch_is_called_one_and_another_file_is_not(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({}, protocol=2))  # as torch.save began files before zip archives
    with pytest.raises(InputError, match=r"model\.pt: is a pickle, which can run code"):
        read_torch_file(path)
    path.write_bytes(b"PKZIP")
    with pytest.raises(InputError, match=r"model\.pt: is not a whole safetensors file"):
        read_torch_file(path)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"embedding_size": 5}], ids=str)
def test_whole_model_goes_to_torchs_names_and_back(changes):
    config = override(QUICK, layers=2, hidden_size=3, dropout=0.0, corpus="files", **changes)
    params = init_params(config.model, 7, key=jax.random.key(0))
    state = model_to_torch(params)
    assert state["decoder.weight"].shape == (7, 3)
    restored = model_from_torch(state)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert infer_config(restored) == config
    assert infer_config(restored, "char") == override(config, unit="char")


def test_model_in_double_precision_stays_so(float64):
    params = init_params(override(QUICK, hidden_size=3).model, 7, key=jax.random.key(0))
    assert params.embedding.dtype == jnp.float64
    restored = model_from_torch(model_to_torch(params))
    jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_second_bias_goes_to_torchs(cell):
    config = override(QUICK, layers=1, hidden_size=HIDDEN, second_bias=True, cell=cell)
    layers = init_params(config.model, 3, key=jax.random.key(0)).layers
    state = layers_to_torch(layers)
    assert state["bias_hh_l0"].any() == (cell != "gru")  # where torch would multiply it
    (restored,) = layers_from_torch(state, nonlinearity="tanh")
    np.testing.assert_allclose(restored.bias, merge_biases(layers[0]).bias, rtol=1e-6)
    assert infer_config(init_params(config.model, 3, key=jax.random.key(0))).model.second_bias


REFUSED = [
    ({}, "weight_ih_l0: is missing; give the state_dict of a torch.nn.LSTM, GRU or RNN"),
    ({"weight_ih_l0": (16, 3)}, "weight_hh_l0: is missing"),
    ({"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 4)}, "has 20 rows for 4 units, where an LSTM"),
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
        "weight_ih_l0_reverse: only a unidirectional torch.nn.LSTM, GRU or RNN without projections",
    ),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 2), "weight_hr_l0": (2, 4)},
        "weight_hr_l0: only a unidirectional torch.nn.LSTM, GRU or RNN without projections",
    ),
    (
        {"weight_ih_l0": (16, 3, 1), "weight_hh_l0": (16, 4)},
        "weight_ih_l0: has 3 dimensions, where torch's has 2; give an unmodified state_dict",
    ),
    (
        {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": (16, 1)},
        "bias_ih_l0: has 2 dimensions, where torch's has 1; give an unmodified state_dict",
    ),
]


@pytest.mark.parametrize(("shapes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_state_of_another_module_is_refused(shapes, reason):
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=re.escape(reason)):
        layers_from_torch(state)


def test_cells_that_cannot_be_the_same_are_refused():
    gru, rnn = torch_state("GRU"), torch_state("RNN")
    gru["bias_hh_l1"][-1] = 0.1
    with pytest.raises(InputError, match="bias_hh_l1: its last 4, for the gate n, are not zero"):
        layers_from_torch(gru)
    with pytest.raises(InputError, match=r"torch.nn.RNN, which do not tell its nonlinearity; give"):
        layers_from_torch(rnn)
    with pytest.raises(InputError, match="nonlinearity=relu: no cell here computes it"):
        layers_from_torch(rnn, nonlinearity="relu")


def test_sizes_that_differ_and_missing_parts_are_refused():
    sizes = override(QUICK, hidden_size=2, output_size=3).model
    with pytest.raises(ValueError, match="layers of 2, 3 units"):
        model_to_torch(init_params(sizes, 3, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"encoder\.weight, decoder\.weight: missing; name the"):
        model_from_torch({"decoder.bias": np.zeros(3)})
    with pytest.raises(ValueError, match=r"rnn\.weight_ih_l0: is missing"):
        model_from_torch({"encoder.weight": np.zeros((3, 2))})


def test_array_that_would_be_left_out_is_refused():
    state = model_to_torch(init_params(QUICK.model, 3, key=jax.random.key(0)))
    more = {"norm.weight": np.ones(2), "module.projection.weight": np.ones((2, 2))}
    with pytest.raises(InputError, match=r"^norm\.weight, projection\.weight: no part of a model"):
        model_from_torch(state | more)


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
    expected = layers_from_torch(state)
    jax.tree.map(np.testing.assert_array_equal, layers_from_torch(iter(state.items())), expected)


def test_prefix_may_have_any_word():
    state, expected = torch_state(), layers_from_torch(torch_state())
    named = {f"debiased.rnn.{name}": x for name, x in state.items()}
    jax.tree.map(np.testing.assert_array_equal, layers_from_torch(named, "debiased.rnn."), expected)
