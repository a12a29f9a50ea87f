"""Our modules in place of Flax's layers, in combinations of all that a call can be.

Covers what Flax's own tests of its recurrent layers cover (tests/nnx/nn/recurrent_test.py and
tests/linen/linen_recurrent_test.py in google/flax), as comparisons with Flax's results.
"""

import itertools
import random
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_stack import (
    BATCH,
    CELLS,
    FEATURES,
    HIDDEN,
    TIME,
    assert_close,
    carries,
    layers_of,
    make_pair,
    normal,
    sequences_of,
)

from zaremba_jax.interop.flax_modules import DeepRNN, LinenDeepRNN, linen_params

LENGTHS = [1, 4, 2]
TOLERANCES = {jnp.float64: 1e-10, jnp.float32: 1e-5, jnp.bfloat16: 0.1}


class Call(NamedTuple):
    """A module and how it is called."""

    cell: Any
    layers: int
    direction: str
    time_major: bool
    has_lengths: bool
    has_carry: bool
    return_carry: bool


VALUES: Any = (
    tuple(CELLS),
    (1, 2),
    ("forwards", "backwards", "backwards, in order", "both"),
    *((False, True),) * 4,
)
ALL = [Call(*values) for values in itertools.product(*VALUES)]


def every_pair() -> list[Call]:
    """Few calls among which any two values of different arguments meet."""

    def pairs(call):
        return set(itertools.combinations(enumerate(call), 2))

    left, chosen = set().union(*map(pairs, ALL)), []
    shuffled = random.Random(0).sample(ALL, len(ALL))
    while left:
        chosen.append(max(shuffled, key=lambda call: len(pairs(call) & left)))
        left -= pairs(chosen[-1])
    return chosen


def differentiate(call, module, x):
    def loss(module, x):
        return sum((leaf.astype(float) ** 2).sum() for leaf in jax.tree.leaves(call(module, x)))

    gradient, by_x = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(module, x)
    holder = nnx.clone(module)
    nnx.update(holder, gradient)  # in place of the weights, to be compared in one form
    return layers_of(holder), by_x


def split_and_merge(call, module, x):
    graph, state = nnx.split(module)
    return jax.jit(lambda state, x: call(nnx.merge(graph, state), x))(state, x)


def scan_windows(call, module, x):
    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def read(module, window):
        return module, call(module, window)

    return read(module, jnp.stack([x, -x]))[1]


def train(call, module, x):
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            leaves = jax.tree.leaves(call(module, x))
            return sum((leaf.astype(float) ** 2).mean() for leaf in leaves)

        optimizer.update(module, nnx.grad(loss)(module))

    for _ in range(2):
        step(module, optimizer)
    return layers_of(module)


TRANSFORMATIONS = {
    "none": lambda call, module, x: call(module, x),
    "jit": lambda call, module, x: nnx.jit(call)(module, x),
    "grad": differentiate,
    "remat": lambda call, module, x: differentiate(nnx.remat(call), module, x),
    "vmap": lambda call, module, x: nnx.jit(nnx.vmap(call, in_axes=(None, 0)))(
        module, jnp.stack([x, -x])
    ),
    "scan": scan_windows,
    "split and merge": split_and_merge,
    "optimizer": train,
    "linen": lambda call, module, x: call(as_linen(module), x),
}


def as_linen(module: Any):
    """The same function from the modules of linen, if it is one of ours."""
    both = isinstance(module, nnx.Bidirectional)
    parts: list[Any] = [module.forward_rnn, module.backward_rnn] if both else [module]
    one = parts[0]
    if not isinstance(one, DeepRNN):
        return module
    options: Any = {"layers": len(one.params), "cell": one.layers[0].cell}
    made: Any = LinenDeepRNN(HIDDEN, **options, param_dtype=one.params[0].bias.dtype)
    params = linen_params(one.params)
    if both:
        made = nn.Bidirectional(made, made.clone())
        params = {"forward_rnn": params, "backward_rnn": linen_params(parts[1].params)}
    return lambda x, **given: made.apply({"params": params}, x, **given)


def check(case: Call, transformation: str, dtype: Any):
    """Compares what Flax's modules and ours return."""
    with jax.enable_x64(dtype is jnp.float64):
        forth = make_pair(case.cell, case.layers, dtype=dtype)
        both = case.direction == "both"
        back = make_pair(case.cell, case.layers, dtype=dtype, first_seed=20) if both else forth
        pair = map(nnx.Bidirectional, forth, back) if both else forth
        x = normal(*((TIME, BATCH) if case.time_major else (BATCH, TIME)), FEATURES).astype(dtype)
        start = jax.tree.map(lambda x: x.astype(dtype), carries(case.cell, case.layers))
        start = start if case.layers > 1 else start[0]
        options: Any = {"time_major": case.time_major, "return_carry": case.return_carry}
        if case.direction.startswith("backwards"):
            options |= {"reverse": True, "keep_order": case.direction != "backwards"}
        if case.has_carry:
            options["initial_carry"] = (start, start) if both else start
        if case.has_lengths:
            options["seq_lengths"] = jnp.array(LENGTHS)
        # Outputs over the padding are Flax's only where the carry is not asked for.
        masked = case.has_lengths and (case.return_carry or both)
        valid = sequences_of(LENGTHS if masked else [TIME] * BATCH).astype(dtype)
        valid = jnp.swapaxes(valid, 0, 1) if case.time_major else valid

        def call(module, x):
            results = module(x, **options)
            if case.return_carry:
                return results[0], results[1] * valid
            return results * valid

        expected, actual = (TRANSFORMATIONS[transformation](call, it, x) for it in pair)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
            assert ours.dtype == theirs.dtype == dtype
            ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
            limit = TOLERANCES[dtype] * max(1, np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


def in_turn(calls):
    """Each call with a transformation and a type, all of them in turn."""
    kinds = itertools.chain.from_iterable(
        [(name, list(TOLERANCES)[(place + turn) % 3]) for place, name in enumerate(TRANSFORMATIONS)]
        for turn in itertools.count()
    )
    return [
        pytest.param(call, *kind, id=str(tuple(call)))
        for call, kind in zip(calls, kinds, strict=False)
    ]


@pytest.mark.parametrize(("case", "transformation", "dtype"), in_turn(every_pair()))
def test_call_means_what_it_means_in_flax(case, transformation, dtype):
    check(case, transformation, dtype)


@pytest.mark.combinations
@pytest.mark.parametrize(("case", "transformation", "dtype"), in_turn(ALL))
def test_every_call_means_what_it_means_in_flax(case, transformation, dtype):
    check(case, transformation, dtype)


def test_one_module_may_read_both_ways_and_its_outputs_may_be_merged_in_any_way(float64):
    pair = make_pair("lstm", 1)
    expected, actual = (
        nnx.Bidirectional(module, module, merge_fn=jnp.multiply)(normal(BATCH, TIME, FEATURES))
        for module in pair
    )
    assert_close(actual, expected)


def test_inputs_may_be_whole_numbers():
    x = jnp.arange(BATCH * TIME * FEATURES, dtype=jnp.int32).reshape(BATCH, TIME, FEATURES) % 5
    theirs, ours = make_pair("gru", 1, dtype=jnp.float32)
    assert_close(ours(x, return_carry=False), theirs(x, return_carry=False), 1e-6)
