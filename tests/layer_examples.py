"""Examples of one layer of any cell, and comparisons of its kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import CellName, LayerParams, RecurrentMasks
from zaremba_jax.cells import CELLS
from zaremba_jax.config import ComputeConfig, Precision
from zaremba_jax.rnn import unroll_layer

# The masks on the connections through time that each cell admits.
ADMITTED = {
    "lstm": ("hidden", "update", "zoneout_hidden", "zoneout_cell"),
    "gru": ("hidden", "update", "zoneout_hidden"),
    "tanh": ("hidden", "zoneout_hidden"),
}
# Kernels agree up to the rounding of the type and, in bfloat16, of the operands, where a value on
# the edge may round either way.
TOLERANCE = {
    ("float64", "float32"): 1e-10,
    ("float32", "float32"): 1e-5,
    ("float32", "bfloat16"): 5e-3,
}


def make(
    time, batch, features, hidden, dtype="float32", cell: CellName = "lstm", names=None, seed=()
):
    """A random layer, inputs, state and masks, and the weights of a loss over every result.

    `names` are those of the masks; None means no masks. `seed` distinguishes equal sizes.
    """
    rng = np.random.default_rng([time, batch, features, hidden, *seed])
    kind = CELLS[cell]
    gates = len(kind.gates) * hidden

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)

    def state():
        return kind.state(*(normal(batch, hidden) for _ in kind.state.__annotations__))

    params = LayerParams(
        input_weights=normal(features, gates),
        recurrent_weights=normal(hidden, gates),
        bias=normal(gates),
        cell=cell,
    )
    results = normal(time, batch, hidden), state()
    shapes = {
        "hidden": (time, batch, hidden),
        "update": (1, batch, hidden),  # one for the window
        "zoneout_hidden": (time, batch, hidden),
        "zoneout_cell": (1, 1, 1),  # as in evaluation
    }
    masks = {name: jnp.asarray(rng.uniform(size=shapes[name]), dtype) for name in names or ()}
    layer = params, normal(time, batch, features), state()
    return layer, None if names is None else RecurrentMasks(**masks), results


def values_and_gradients(compute, arguments, masks, weights):
    """Gradients, those of the masks included, and results of a layer under `compute`."""
    layer = functools.partial(unroll_layer, compute=compute)
    return of_layer(layer, (*arguments, masks), weights)


def of_layer(layer, arguments, weights):
    """Gradients, for all arguments, of a loss that weighs every result; and the results."""

    def loss(arguments):
        results = layer(*arguments)
        products = jax.tree.map(lambda a, b: (a * b).sum(), results, weights)
        return sum(jax.tree.leaves(products)), results

    return jax.grad(loss, has_aux=True)(arguments)


def assert_kernel_matches_scan(example, dtype, precision: Precision = "float32"):
    """Compares values and gradients, both compiled."""

    @jax.jit
    def run_kernels(*example):
        return [
            values_and_gradients(ComputeConfig(kernel=kernel, precision=precision), *example)
            for kernel in ("custom_vjp", "scan")
        ]

    fast, readable = run_kernels(*example)
    assert_same(fast, readable, TOLERANCE[dtype, precision])


def assert_same(actual, expected, tolerance, floor=1e-3):
    """Asserts equal trees and types, and values equal relative to each array's largest one.

    An array whose largest value is below `floor` is compared relative to that.
    """

    def same(a, b):
        scale = max(float(jnp.abs(b).max()), floor)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    jax.tree.map(same, actual, expected)


def carried(example):
    """Shapes of what each loop of the kernel, forward and backward, carries.

    A loop returns what it carries in its body's shape, and everything else with a time axis.
    """
    run = functools.partial(values_and_gradients, ComputeConfig())
    return [
        [
            result.aval.shape
            for result, of_body in zip(scan.outvars, scan.params["jaxpr"].out_avals, strict=True)
            if result.aval.shape == of_body.shape
        ]
        for scan in equations(jax.make_jaxpr(run)(*example).jaxpr, "scan")
    ]


def equations(jaxpr, primitive):
    """Every equation of a program that applies this primitive, also inside calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr, primitive)
