"""One layer of any cell with all that it needs, and what its kernels are compared by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import CellName, LayerParams, RecurrentMasks
from zaremba_jax.cells import CELLS
from zaremba_jax.config import ComputeConfig
from zaremba_jax.precision import Precision
from zaremba_jax.rnn import unroll_layer

# What touches the connections through time of each cell.
ADMITTED = {
    "lstm": ("hidden", "update", "keep_hidden", "keep_cell"),
    "gru": ("hidden", "update", "keep_hidden"),
    "tanh": ("hidden", "keep_hidden"),
}
# The same function up to rounding: of the type, and in bfloat16 of the operands too, where a
# value on the edge may round to either side.
TOLERANCE = {
    ("float64", "float32"): 1e-10,
    ("float32", "float32"): 1e-4,
    ("float32", "bfloat16"): 3e-2,
}


def make(
    time, batch, features, hidden, dtype="float32", cell: CellName = "lstm", names=None, seed=()
):
    """A layer, inputs, a state and masks, random, and the weights of a loss of every result.

    `names` are those of the masks; None: no masks at all. `seed` tells apart what has one size.
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
        "keep_hidden": (time, batch, hidden),
        "keep_cell": (1, 1, 1),  # as in evaluation
    }
    masks = {name: jnp.asarray(rng.uniform(size=shapes[name]), dtype) for name in names or ()}
    layer = params, normal(time, batch, features), state()
    return layer, None if names is None else RecurrentMasks(**masks), results


def values_and_gradients(compute, arguments, masks, weights):
    """Of a layer as `compute` chooses it, gradients of the masks among them."""
    layer = functools.partial(unroll_layer, compute=compute)
    return of_layer(layer, (*arguments, masks), weights)


def of_layer(layer, arguments, weights):
    """Gradients of a loss that weighs every result, by all arguments, and the results."""

    def loss(arguments):
        results = layer(*arguments)
        products = jax.tree.map(lambda a, b: (a * b).sum(), results, weights)
        return sum(jax.tree.leaves(products)), results

    return jax.grad(loss, has_aux=True)(arguments)


def assert_kernel_matches_scan(example, dtype, precision: Precision = "float32"):
    """Values and gradients, both compiled."""

    @jax.jit
    def both(*example):
        return [
            values_and_gradients(ComputeConfig(kernel=kernel, precision=precision), *example)
            for kernel in ("xla", "scan")
        ]

    fast, readable = both(*example)
    assert_same(fast, readable, TOLERANCE[dtype, precision])


def assert_same(actual, expected, tolerance):
    """Equal trees, types and, to a share of each array's size, values."""

    def same(a, b):
        scale = max(float(jnp.abs(b).max()), 1.0)
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    jax.tree.map(same, actual, expected)


def carried(example):
    """Shapes of what each loop of the kernel, forward and backward, carries.

    A loop returns what it carries as its body does, and all else with an axis of time.
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
    """Every one of a program that is of this primitive, those inside of calls too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr, primitive)
