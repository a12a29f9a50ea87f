import itertools
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_stack import (
    BATCH,
    CELLS,
    FEATURES,
    HIDDEN,
    TIME,
    UNDRAWN,
    ZEROS,
    assert_close,
    carries,
    layers_of,
    make_pair,
    normal,
    sequences_of,
)
from invoke import run_on_devices
from jax import export
from layer_examples import equations

from zaremba_jax.array_types import LayerParams, LSTMState
from zaremba_jax.config import ComputeConfig
from zaremba_jax.interop.flax_modules import DeepRNN, LinenDeepRNN, linen_params
from zaremba_jax.interop.flax_weights import linen_layer, nnx_layer


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_and_dropout_are_those_of_a_stack_of_flax(float64, cell):
    theirs, ours = make_pair(cell, 2, dropout=0.5)
    x, lengths = normal(TIME, BATCH, FEATURES), jnp.array([1, 4, 2])
    valid = jnp.swapaxes(sequences_of(lengths), 0, 1)
    weights = carries(cell, 2), normal(TIME, BATCH, HIDDEN, seed=3) * valid

    def loss(module, x):
        results = module(x, seq_lengths=lengths, time_major=True)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), results, weights)))

    gradients = nnx.value_and_grad(loss, argnums=(0, 1))
    (expected, (by_theirs, by_x)), (value, (by_ours, by_my_x)) = (
        gradients(module, x) for module in (theirs, ours)
    )
    assert_close((value, by_my_x), (expected, by_x))
    nnx.update(theirs, by_theirs)
    nnx.update(ours, by_ours)  # gradients in place of the weights, to compare them
    assert_close(ours.params, layers_of(theirs))


@pytest.mark.parametrize("option", ["time_major", "return_carry", "reverse", "keep_order"])
def test_option_of_a_module_is_that_of_its_calls(option):
    rest: Any = {"reverse": True} if option == "keep_order" else {}
    it: Any = {option: True}
    x = normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    made, plain = (DeepRNN(FEATURES, HIDDEN, **options, rngs=nnx.Rngs(0)) for options in (it, {}))
    expected = plain(x, **rest, **it)
    assert_close(made(x, **rest), expected)
    variables = {"params": linen_params(plain.params)}
    assert_close(LinenDeepRNN(HIDDEN, **it).apply(variables, x, **rest), expected)
    of_none, of_it = map(jax.tree.leaves, (plain(x, **rest), expected))
    assert len(of_none) < len(of_it) or not np.allclose(of_none[0], of_it[0])


def test_linen_has_the_sites_the_precision_and_the_carry_that_it_is_given():
    x, key = normal(BATCH, TIME, FEATURES).astype(jnp.float32), jax.random.key(1)
    ours = DeepRNN(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    variables, carry = {"params": linen_params(ours.params)}, ((jnp.ones((BATCH, HIDDEN)),) * 2,)
    for dropped in (True, False):
        module = LinenDeepRNN(HIDDEN, dropout=0.5, drop_output=dropped, deterministic=False)
        outputs: Any = module.apply(variables, x, initial_carry=carry, rngs={"dropout": key})
        assert bool((outputs == 0).any()) == dropped
    rounded = LinenDeepRNN(HIDDEN, compute=ComputeConfig(precision="bfloat16"))
    difference = rounded.apply(variables, x) - ours(x)
    assert 0 < float(abs(difference).max()) < 0.02
    begun: Any = LinenDeepRNN(HIDDEN).apply(variables, x, initial_carry=carry)
    assert_close(begun, ours(x, initial_carry=carry))
    assert not np.allclose(begun, ours(x))


def test_carry_may_be_the_library_s_own_state(float64):
    _, ours = make_pair("lstm", 2)
    x, carry = normal(BATCH, TIME, FEATURES), carries("lstm", 2)
    state = tuple(LSTMState(hidden=hidden, cell=cell) for cell, hidden in carry)
    assert_close(ours(x, initial_carry=state), ours(x, initial_carry=carry))


def test_an_empty_sequence_leaves_the_carry_as_it_was(float64):
    _, ours = make_pair("lstm", 2)
    start = carries("lstm", 2)
    lengths = jnp.zeros(BATCH, jnp.int32)
    carry, _ = ours(normal(BATCH, TIME, FEATURES), initial_carry=start, seq_lengths=lengths)
    assert_close(carry, start)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("padding", [1e5, np.nan])
def test_padding_may_hold_anything_where_the_carry_is_asked_for(float64, cell, padding):
    _, ours = make_pair(cell, 2)
    lengths, x = jnp.array([1, 4, 2]), normal(BATCH, TIME, FEATURES)
    clean, padded = (jnp.where(sequences_of(lengths) == 1, x, fill) for fill in (0, padding))

    def loss(module, x):
        carry, outputs = module(x, seq_lengths=lengths)
        results = carry, outputs * sequences_of(lengths)
        return sum(leaf.sum() for leaf in jax.tree.leaves(results)), results

    gradients = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected, actual = (jax.tree.leaves(gradients(ours, x)) for x in (clean, padded))
    assert all(np.isfinite(leaf).all() for leaf in expected)
    assert_close(actual, expected)


def test_lengths_may_be_numpys_or_a_list():
    module = DeepRNN(FEATURES, HIDDEN, **(UNDRAWN | {"param_dtype": jnp.float32}), rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    expected = module(x, seq_lengths=jnp.array([1, 4, 2]), return_carry=True, reverse=True)
    # A warning about truncation would be an error here.
    for lengths in (np.array([1, 4, 2], np.int64), [1, 4, 2]):
        actual = module(x, seq_lengths=lengths, return_carry=True, reverse=True)
        assert_close(actual, expected)


@pytest.mark.parametrize("axes", [(), (2, 3)])
def test_the_batch_may_have_any_axes(float64, axes):
    _, ours = make_pair("lstm", 1)
    x, start = normal(*axes, TIME, FEATURES), carries("lstm", 1, axes)
    lengths = jnp.full(axes, 2)
    carry, outputs = ours(x, initial_carry=start, seq_lengths=lengths)
    flat = ours(
        x.reshape(-1, TIME, FEATURES),
        initial_carry=jax.tree.map(lambda part: part.reshape(-1, HIDDEN), start),
        seq_lengths=lengths.reshape(-1),
    )
    assert outputs.shape == (*axes, TIME, HIDDEN)
    assert_close(jax.tree.map(lambda a, b: a.reshape(b.shape), (carry, outputs), flat), flat)


def sites(module, *args, **options):
    """How many keys a call draws from the dropout stream."""
    before = int(module.dropout.rngs.count[...])
    module(*args, **options)
    return int(module.dropout.rngs.count[...]) - before


def test_dropout_has_the_papers_sites_and_flaxs_switches():
    x, rngs = jnp.ones((BATCH, TIME, FEATURES)), nnx.Rngs(params=0, dropout=1)
    full, inner = (
        DeepRNN(FEATURES, HIDDEN, layers=2, dropout=0.5, drop_output=last, rngs=rngs)
        for last in (True, False)
    )
    assert sites(full, x) == 3  # L + 1
    assert sites(inner, x) == 2
    assert (full(x)[:, -1] == 0).any()
    assert (inner(x)[:, -1] != 0).all()
    assert sites(full, x, deterministic=True) == 0
    full.eval()
    assert sites(full, x) == 0
    full.train()
    assert sites(full, x) == 3
    repeats = [full(x, rngs=nnx.Rngs(dropout=3)) for _ in range(2)]
    np.testing.assert_array_equal(*repeats)
    assert not np.array_equal(full(x, rngs=nnx.Rngs(dropout=4)), repeats[0])


def test_every_site_draws_a_mask_of_its_own_from_a_key():
    module = DeepRNN(HIDDEN, HIDDEN, layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    dropped, drop = [], module.dropout.__call__
    with mock.patch.object(
        nnx.Dropout, "__call__", lambda _, x, **options: dropped.append(drop(x, **options)) or x
    ):
        module(jnp.ones((BATCH, TIME, HIDDEN)), rngs=jax.random.key(3))
    masks = [np.asarray(x == 0) for x in dropped]
    assert len(masks) == 3
    assert all(mask.any() for mask in masks)
    assert not any(np.array_equal(*pair) for pair in itertools.combinations(masks, 2))


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_batch_of_no_sequences_is_one(cell):
    module = DeepRNN(FEATURES, HIDDEN, layers=2, cell=cell, return_carry=True, rngs=nnx.Rngs(0))
    carry, outputs = module(jnp.ones((0, TIME, FEATURES)))
    assert outputs.shape == (0, TIME, HIDDEN)
    assert {part.shape for part in jax.tree.leaves(carry)} == {(0, HIDDEN)}
    new_carry, _ = module(jnp.ones((0, TIME, FEATURES)), initial_carry=carry)
    assert jax.tree.structure(new_carry) == jax.tree.structure(carry)


def test_linen_draws_its_masks_from_the_stream_of_dropout():
    x = jnp.ones((BATCH, TIME, FEATURES))
    module: Any = LinenDeepRNN(HIDDEN, dropout=0.5)
    variables = module.init(jax.random.key(0), x, deterministic=True)
    one, same, other = (
        module.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(seed)})
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert (module.apply(variables, x, deterministic=True) != 0).all()
    with pytest.raises(ValueError, match="deterministic"):
        module.apply(variables, x)


def test_both_directions_of_flax_take_it():
    x, lengths = normal(BATCH, TIME, FEATURES).astype(jnp.float32), jnp.array([1, 4, 2])
    forth, back = (
        DeepRNN(FEATURES, HIDDEN, dropout=0.5, deterministic=True, rngs=nnx.Rngs(seed))
        for seed in range(2)
    )
    expected = jnp.concatenate(
        [forth(x), back(x, seq_lengths=lengths, reverse=True, keep_order=True)], axis=-1
    )
    valid = sequences_of(lengths)
    actual = nnx.Bidirectional(forth, back)(x, seq_lengths=lengths)
    assert_close(actual * valid, expected * valid, 1e-6)
    linen: Any = nn.Bidirectional(LinenDeepRNN(HIDDEN), LinenDeepRNN(HIDDEN))
    params = [linen_params(one.params) for one in (forth, back)]
    variables = {"params": dict(zip(("forward_rnn", "backward_rnn"), params, strict=True))}
    actual = linen.apply(variables, x, seq_lengths=lengths)
    assert_close(actual * valid, expected * valid, 1e-6)


def test_both_directions_draw_masks_from_streams_of_their_own():
    x = jnp.ones((BATCH, TIME, FEATURES))

    def outputs(seed):
        rngs = nnx.Rngs(params=0, dropout=seed)
        pair = [DeepRNN(FEATURES, HIDDEN, dropout=0.5, rngs=rngs) for _ in range(2)]
        return nnx.Bidirectional(*pair)(x)

    def outputs_with_a_default_stream(seed):
        rngs = nnx.Rngs(0, dropout=seed)
        pair = [DeepRNN(FEATURES, HIDDEN, dropout=0.5, rngs=rngs) for _ in range(2)]
        return nnx.Bidirectional(*pair, rngs=rngs)(x)

    for draw in (outputs, outputs_with_a_default_stream):
        assert not np.array_equal(draw(1), draw(2))


def test_weights_start_as_those_of_the_cells_that_are_replaced():
    for each, gates in ((False, 1), (True, 4)):
        module = DeepRNN(FEATURES, HIDDEN, layers=2, draw_each_gate=each, rngs=nnx.Rngs(0))
        for layer in module.params:
            assert not layer.bias.any()
            for part in np.split(np.asarray(layer.recurrent_weights), gates, axis=1):
                np.testing.assert_allclose(part @ part.T, np.eye(HIDDEN), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_weights_are_as_large_as_flaxs(cell):
    units, rngs = 8, nnx.Rngs(0)
    theirs = CELLS[cell](FEATURES, units, rngs=rngs)
    (ours,) = DeepRNN(FEATURES, units, cell=cell, rngs=rngs).params
    expected = np.linalg.norm(nnx_layer(theirs).recurrent_weights)
    assert np.linalg.norm(ours.recurrent_weights) == pytest.approx(expected, rel=1e-4)
    x = jnp.ones((BATCH, TIME, FEATURES))
    linen_cell: Any = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "tanh": nn.SimpleCell}[cell]
    drawn = nn.RNN(linen_cell(units)).init(jax.random.key(0), x)["params"]["cell"]
    expected = np.linalg.norm(linen_layer(linen_cell(units), drawn).recurrent_weights)
    module: Any = LinenDeepRNN(units, cell=cell)
    mine = module.init(jax.random.key(0), x)["params"]["layers_0"]
    assert np.linalg.norm(mine["recurrent_weights"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_first_carry_is_flaxs_zeros(cell, layers):
    rngs, shape = nnx.Rngs(0), (2, BATCH, FEATURES)
    expected = CELLS[cell](FEATURES, HIDDEN, rngs=rngs).initialize_carry(shape, rngs)
    expected = expected if layers == 1 else (expected,) * layers
    ours = DeepRNN(FEATURES, HIDDEN, layers=layers, cell=cell, rngs=rngs)
    linen = LinenDeepRNN(HIDDEN, layers=layers, cell=cell)
    for carry in (ours.initialize_carry(shape, rngs), linen.initialize_carry(None, shape)):
        assert_close(carry, expected)
    x = jnp.ones((2, BATCH, TIME, FEATURES))
    assert_close(ours(x, initial_carry=expected, return_carry=True), ours(x, return_carry=True))


def test_options_can_be_set_later_and_take_effect():
    options: Any = {"time_major": True, "return_carry": True, "reverse": True, "keep_order": True}
    x = normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    changed, made = (
        DeepRNN(FEATURES, HIDDEN, rngs=nnx.Rngs(0)),
        DeepRNN(FEATURES, HIDDEN, **options, unroll=4, rngs=nnx.Rngs(0)),
    )
    changed.set_attributes(**options)
    assert_close(changed(x), made(x))
    changed.reverse = False
    assert not np.allclose(changed(x)[1], made(x)[1])
    with pytest.raises(ValueError, match="backwards"):
        changed.set_attributes(backwards=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("time_major", [False, True])
def test_sequences_of_no_steps_give_no_outputs_and_the_carry_as_it_was(cell, time_major):
    module = DeepRNN(FEATURES, HIDDEN, layers=2, cell=cell, rngs=nnx.Rngs(0))
    start = jax.tree.map(lambda x: x.astype(jnp.float32), carries(cell, 2))
    axes = (0, BATCH) if time_major else (BATCH, 0)
    options: Any = {"time_major": time_major, "return_carry": True, "initial_carry": start}
    carry, outputs = module(jnp.ones((*axes, FEATURES)), **options)
    assert outputs.shape == (*axes, HIDDEN)
    assert_close(carry, start)


@pytest.mark.parametrize("bias", [2e4, -2e4, 1e20])
def test_weights_of_any_size_leave_the_carry_of_an_ended_sequence_as_it_is(bias):
    module = DeepRNN(FEATURES, HIDDEN, return_carry=True, rngs=nnx.Rngs(0))
    layer = module.layers[0]
    layer.bias[...] = jnp.repeat(jnp.array([-bias, bias, 0, 1]), HIDDEN).astype(jnp.float32)
    layer.recurrent_weights[...] = layer.recurrent_weights[...] * bias
    x = normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    (cell, hidden), _ = module(x, seq_lengths=[1, 2, 4])
    for sequence, length in enumerate((1, 2, 4)):
        expected, _ = module(x[sequence : sequence + 1, :length])
        np.testing.assert_allclose(cell[sequence : sequence + 1], expected[0], rtol=1e-6)
        np.testing.assert_allclose(hidden[sequence : sequence + 1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_program_for_sequences_of_any_size_can_be_exported(cell):
    module = DeepRNN(FEATURES, HIDDEN, layers=2, cell=cell, rngs=nnx.Rngs(0))
    linen, variables = LinenDeepRNN(HIDDEN, layers=2, cell=cell), linen_params(module.params)
    options: Any = {"return_carry": True, "reverse": True, "keep_order": True}

    def call(x, carry, lengths):
        given = {"initial_carry": carry, "seq_lengths": lengths}
        return linen.apply({"params": variables}, x, **given, **options)

    batch, time = export.symbolic_shape("batch, time")
    start = linen.initialize_carry(None, (BATCH, FEATURES))

    def differentiate(x, carry, lengths):
        def loss(x, carry):
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(call(x, carry, lengths)))

        return jax.grad(loss, argnums=(0, 1))(x, carry)

    of_any_size = (
        jax.ShapeDtypeStruct((batch, time, FEATURES), jnp.float32),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, HIDDEN), x.dtype), start),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )
    x, lengths = normal(BATCH, TIME, FEATURES).astype(jnp.float32), jnp.array([1, 4, 2])
    for function in (call, differentiate):
        exported = export.export(jax.jit(function))(*of_any_size)
        assert_close(exported.call(x, start, lengths), function(x, start, lengths), 1e-5)


def assert_explicit_axes_change_nothing():
    """Runs in a process with two devices, for the test below."""
    mesh, batch = jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec("data")

    def gradients(cell, put, **options):
        rngs = nnx.Rngs(params=0, dropout=1)
        module = DeepRNN(FEATURES, HIDDEN, layers=2, cell=cell, **options, rngs=rngs)
        x = put(jnp.arange(4.0 * TIME * FEATURES).reshape(4, TIME, FEATURES) / 9)
        start = jax.tree.map(put, module.initialize_carry((4, FEATURES)))
        lengths = put(jnp.array([1, 2, 3, 4]))

        def loss(module, x):
            outputs = module(x, initial_carry=start)
            carry, _ = module(x, initial_carry=start, seq_lengths=lengths, return_carry=True)
            return sum((leaf**2).sum() for leaf in (outputs, *jax.tree.leaves(carry)))

        _, by_x = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(module, x)
        return np.asarray(by_x)

    for cell, dropout in (("lstm", 0.5), ("gru", 0.0), ("tanh", 0.0)):
        expected = gradients(cell, lambda x: x, dropout=dropout)
        with jax.set_mesh(mesh):
            actual = gradients(cell, lambda x: jax.device_put(x, batch), dropout=dropout)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_gradients_on_a_mesh_with_explicit_axes_are_those_on_one_device():
    run_on_devices(2, assert_explicit_axes_change_nothing)


def assert_shard_map_changes_nothing():
    """Runs in a process with two devices, for the test below."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, batch = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")

    def gradients(compare, cell, has_start, **compute: Any):
        module = DeepRNN(
            FEATURES, HIDDEN, cell=cell, compute=ComputeConfig(**compute), rngs=nnx.Rngs(0)
        )
        graph, params = nnx.split(module)
        x = jnp.arange(4.0 * TIME * FEATURES).reshape(4, TIME, FEATURES) / 9
        start = jax.tree.map(jnp.ones_like, module.initialize_carry((4, FEATURES)))

        def loss(params, x, start, lengths):
            options: Any = {"seq_lengths": lengths, "initial_carry": start} if has_start else {}
            results = nnx.merge(graph, params)(x, return_carry=True, **options)
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(results))

        differentiate = jax.grad(loss, argnums=(0, 1))
        divided = jax.shard_map(
            differentiate,
            mesh=mesh,
            in_specs=(whole, batch, batch, batch),
            out_specs=(whole, batch),
        )
        compare(divided, differentiate, params, x, start, jnp.array([1, 2, 3, 4]))

    def same_values(divided, expected, *arguments):
        assert_close(jax.jit(divided)(*arguments), jax.jit(expected)(*arguments), 1e-4)

    def same_types(divided, expected, *arguments):
        types = jax.eval_shape(divided, *arguments), jax.eval_shape(expected, *arguments)
        assert types[0] == types[1]

    for cell, has_start in itertools.product(("lstm", "gru"), (False, True)):
        gradients(same_values, cell, has_start)
    kernels = ("scan", "float32"), ("scan", "bfloat16"), ("custom_vjp", "bfloat16")
    for cell, (kernel, precision), has_start in itertools.product(CELLS, kernels, (False, True)):
        gradients(same_types, cell, has_start, kernel=kernel, precision=precision)
    gradients(same_types, "tanh", True)
    gradients(same_types, "lstm", True, kernel="pallas")


def test_gradients_within_shard_map_are_those_on_one_device():
    run_on_devices(2, assert_shard_map_changes_nothing)


def test_operands_in_bfloat16_change_rounding_alone():
    rngs = nnx.Rngs(0)
    module = DeepRNN(FEATURES, HIDDEN, compute=ComputeConfig(precision="bfloat16"), rngs=rngs)
    twin = DeepRNN(FEATURES, HIDDEN, compute=ComputeConfig(kernel="scan"), rngs=rngs)
    twin.load(module.params)
    x = normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    rounded, exact = module(x), twin(x)
    assert rounded.dtype == exact.dtype == jnp.float32
    assert 0 < float(jnp.abs(rounded - exact).max()) < 0.02


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_half_precision_are_drawn_by_flaxs_initializers(dtype):
    module = nnx.eval_shape(lambda: DeepRNN(FEATURES, HIDDEN, param_dtype=dtype, rngs=nnx.Rngs(0)))
    linen = LinenDeepRNN(HIDDEN, param_dtype=dtype)
    variables = jax.eval_shape(linen.init, jax.random.key(0), jnp.ones((BATCH, TIME, FEATURES)))
    drawn = jax.tree.leaves((nnx.state(module, nnx.Param), variables))
    assert [leaf.dtype for leaf in drawn] == [dtype] * 6


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [*((cell, jnp.bfloat16) for cell in CELLS), ("lstm", jnp.float16)],
)
def test_parameters_of_half_precision_differ_by_their_rounding(cell, dtype):
    lengths, x = jnp.array([1, 4, 2]), normal(BATCH, TIME, FEATURES).astype(jnp.float32)
    half, twin = (
        DeepRNN(FEATURES, HIDDEN, cell=cell, **(UNDRAWN | {"param_dtype": kind}), rngs=nnx.Rngs(0))
        for kind in (dtype, jnp.float32)
    )
    (zeros,) = twin.params
    half.load((jax.tree.map(lambda leaf: normal(*leaf.shape), zeros),))
    twin.load(half.params)
    start = jax.tree.map(lambda leaf: leaf.astype(dtype), carries(cell, 1))

    @nnx.jit
    @nnx.grad(argnums=(0, 1), has_aux=True)
    def gradients(module, x):
        results = module(x, initial_carry=start, seq_lengths=lengths, return_carry=True)
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(results)), results

    (gradient, by_x), results = gradients(half, x)
    assert by_x.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, results))} == {jnp.dtype(dtype)}
    actual, expected = jax.tree.leaves(((gradient, by_x), results)), gradients(twin, x)
    for a, b in zip(actual, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.05, atol=0.05)


def test_weights_of_another_type_are_converted_as_they_are_loaded():
    half, full = (
        DeepRNN(FEATURES, HIDDEN, **(UNDRAWN | {"param_dtype": dtype}), rngs=nnx.Rngs(0))
        for dtype in (jnp.float16, jnp.float32)
    )
    (layer,) = full.params
    half.load((jax.tree.map(lambda x: x + 1 / 3, layer),))
    assert_close(
        half.params, (jax.tree.map(lambda x: jnp.full_like(x, 1 / 3, jnp.float16), layer),)
    )


def test_weights_are_partitioned_as_those_of_flaxs_cells():
    axes, rngs = (None, "model"), nnx.Rngs(0)
    boxed: Any = nn.with_partitioning(ZEROS, axes)
    linen: Any = LinenDeepRNN(HIDDEN, kernel_init=boxed)
    variables = jax.eval_shape(linen.init, jax.random.key(0), jnp.ones((BATCH, TIME, FEATURES)))
    specs = nn.get_partition_spec(variables)["params"]["layers_0"]
    assert specs["input_weights"] == jax.sharding.PartitionSpec(*axes)
    inits: Any = {
        "kernel_init": nnx.with_partitioning(ZEROS, axes),
        "recurrent_kernel_init": ZEROS,
    }
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        ours = DeepRNN(FEATURES, HIDDEN, **inits, rngs=rngs)
        theirs = nnx.OptimizedLSTMCell(FEATURES, HIDDEN, **inits, rngs=rngs)
        actual, expected = ours.layers[0].input_weights, theirs.dense_i.kernel
        assert actual.get_metadata() == expected.get_metadata()
        assert actual[...].sharding == expected[...].sharding
        assert ours(jnp.ones((BATCH, TIME, FEATURES))).shape == (BATCH, TIME, HIDDEN)


def test_scan_is_differentiated_forwards():
    ones = nnx.initializers.ones_init()
    inits: Any = {"kernel_init": ones, "recurrent_kernel_init": ones}
    rngs, x = nnx.Rngs(params=0, dropout=1), jnp.ones((BATCH, TIME, FEATURES))
    scan = ComputeConfig(kernel="scan")
    module = DeepRNN(FEATURES, HIDDEN, dropout=0.5, compute=scan, **inits, rngs=rngs)

    def loss(scale):
        return module(scale * x, rngs=nnx.Rngs(dropout=2)).sum()

    @jax.jit
    def derivatives(at):
        return jax.grad(loss)(at), jax.jvp(loss, (at,), (at,))[1], jax.hessian(loss)(at)

    backwards, forwards, second = derivatives(1.0)
    np.testing.assert_allclose(forwards, backwards, rtol=1e-5)
    assert np.isfinite(second)
    assert backwards != 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layers": 0}, "^layers=0: must be at least 1"),
        ({"in_features": 0}, "^in_features=0: must be at least 1"),
        ({"hidden_features": 0}, "features=0: must be at least 1"),
        ({"hidden_features": -1}, "features=-1: must be at least 1"),
        ({"cell": "rnn"}, "cell='rnn': must be one of lstm, gru, tanh"),
        ({"dropout": 1.0}, "dropout=1.0: must be at least 0 and below 1"),
    ],
)
def test_module_that_cannot_be_is_refused(settings, reason):
    sizes = {"in_features": FEATURES, "hidden_features": HIDDEN} | settings
    with pytest.raises(ValueError, match=reason):
        DeepRNN(**sizes, rngs=nnx.Rngs(0))
    inputs, features = jnp.ones((1, 1, sizes.pop("in_features"))), sizes.pop("hidden_features")
    with pytest.raises(ValueError, match=reason):
        LinenDeepRNN(features, **sizes).init(jax.random.key(0), inputs)


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((BATCH, TIME, 5), {}, "a time axis and a last axis of 2 features"),
        ((FEATURES,), {}, "a time axis and a last axis of 2 features"),
        ((BATCH, TIME, FEATURES), {"initial_carry": ()}, "a carry with arrays of shapes .. for"),
        (
            (BATCH, TIME, FEATURES),
            {"seq_lengths": jnp.ones(TIME, jnp.int32)},
            "give one per sequence",
        ),
        ((BATCH, TIME, FEATURES), {"seq_lengths": [1]}, "give one per sequence"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(shape, options, reason):
    module = DeepRNN(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=reason):
        module(jnp.ones(shape), **options)


@pytest.mark.parametrize(
    ("cell", "layers", "shapes"),
    [
        ("lstm", 1, [[(HIDDEN, BATCH + 1)] * 2]),
        ("lstm", 1, [[(BATCH + 1, HIDDEN)] * 3]),
        ("lstm", 2, [[(BATCH + 1, HIDDEN)]] * 2),  # one layer's (c, h)
        ("gru", 1, [[(BATCH + 1, HIDDEN)] * 2]),
        ("tanh", 1, [[(2, BATCH + 1, HIDDEN)]]),
    ],
)
def test_carry_that_does_not_fit_is_refused(cell, layers, shapes):
    module = DeepRNN(FEATURES, HIDDEN, layers=layers, cell=cell, rngs=nnx.Rngs(0))
    # A batch other than HIDDEN, so that a transposed carry has another shape.
    carry = tuple(tuple(map(jnp.ones, of_layer)) for of_layer in shapes)
    reason = "the cell lstm: give c and h, " if cell == "lstm" else f"the cell {cell}: give h, "
    with pytest.raises(ValueError, match=f"{reason}of shape .{BATCH + 1}, {HIDDEN}. each"):
        module(jnp.ones((BATCH + 1, TIME, FEATURES)), initial_carry=carry)


def test_a_second_bias_is_added_to_the_first(float64):
    _, ours = make_pair("lstm", 1)
    (layer,) = ours.params
    weights, half_bias = (layer.input_weights, layer.recurrent_weights), layer.bias / 2
    half = LayerParams(*weights, bias=half_bias, second_bias=half_bias)
    x, expected = normal(BATCH, TIME, FEATURES), ours(normal(BATCH, TIME, FEATURES))
    ours.load((half,))
    linen = LinenDeepRNN(HIDDEN, param_dtype=jnp.float64)
    assert_close(ours(x), expected)
    assert_close(linen.apply({"params": linen_params((half,))}, x), expected[1])


def test_weights_of_other_sizes_are_refused():
    module, other = (DeepRNN(size, HIDDEN, rngs=nnx.Rngs(0)) for size in (FEATURES, 5))
    with pytest.raises(ValueError, match=r"layers of the shapes .*; make it with the cell and"):
        module.load(other.params)


def test_initializers_draw_what_they_are_named_after_and_need_no_stream_for_dropout():
    names = ("kernel_init", "recurrent_kernel_init", "bias_init")
    options: Any = {name: nnx.initializers.constant(v) for v, name in enumerate(names, start=1)}
    (layer,) = DeepRNN(FEATURES, HIDDEN, **options, rngs=nnx.Rngs(params=0)).params
    x = jnp.ones((BATCH, TIME, FEATURES))
    drawn = LinenDeepRNN(HIDDEN, **options).init(jax.random.key(0), x)["params"]["layers_0"]
    for value, name in enumerate(("input_weights", "recurrent_weights", "bias"), start=1):
        np.testing.assert_array_equal(getattr(layer, name), value)
        np.testing.assert_array_equal(drawn[name], value)


def test_parameters_of_bfloat16_are_factors_of_products_of_bfloat16():
    options = UNDRAWN | {"param_dtype": jnp.bfloat16}
    module = DeepRNN(FEATURES, HIDDEN, **options, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(lambda x: module(x))(jnp.ones((BATCH, TIME, FEATURES)))
    factors = {x.aval.dtype for p in equations(program.jaxpr, "dot_general") for x in p.invars}
    assert factors == {jnp.dtype("bfloat16")}
