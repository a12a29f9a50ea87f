"""Matrix products in a run's precision.

In bfloat16 only the operands of a product are rounded: products accumulate in
float32 and return it, gradients of weights included. In the layers of
`kernels.lstm` and in the softmax, the gradient of a bias is a sum of such operands.
"""

import functools
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from zaremba_jax.config import Precision
from zaremba_jax.errors import InputError
from zaremba_jax.ops.varying import varying_alike

# By the contracted axis: from how many weights on `dot_few_rows` turns bfloat16 around on a CPU.
TURNED_FROM = (5_000_000, 500_000)


def operand(x: Float[Array, "*shape"], precision: Precision) -> Float[Array, "*shape"]:
    """`x` as a factor of a product: rounded to bfloat16, or unchanged in float32.

    Raises:
      InputError: `x` is float64 and would be rounded, with products summed in float32.
    """
    if precision == "bfloat16" and x.dtype == jnp.float64:
        raise InputError(
            "precision=bfloat16: is for float32 values, and these are float64; use"
            " precision=float32, or turn jax_enable_x64 off"
        )
    return x.astype(jnp.bfloat16) if precision == "bfloat16" else x


def dot(
    left: Float[Array, "*any inner"], right: Float[Array, "rows columns"], *, contract: int = 0
) -> Float[Array, "*any outer"]:
    """The product of two operands; that of bfloat16 is accumulated and returned in float32.

    Contracts the last axis of `left` with axis `contract` of `right`: 0 is
    `left @ right`, 1 is `left @ right.T`.
    """
    accumulator = jnp.float32 if left.dtype == jnp.bfloat16 else None
    axes = ((left.ndim - 1,), (contract,))
    # Not jnp.matmul or right.T: on a CPU, both make float32 copies of bfloat16 operands.
    return jax.lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=accumulator)


def dot_few_rows(
    rows: Float[Array, "batch inner"], weights: Float[Array, "rows columns"], *, contract: int = 0
) -> Float[Array, "batch outer"]:
    """`dot` for the few rows of one time step, which is bound by reading the weights."""
    direct = functools.partial(dot, contract=contract)
    if rows.dtype == jnp.bfloat16 and weights.size < TURNED_FROM[contract]:
        return direct(rows, weights)

    def turned(rows: jax.Array, weights: jax.Array) -> jax.Array:
        # A CPU multiplies up to twice as fast if the weights are the left factor, read along
        # their rows. Without the barrier XLA would turn the product around again.
        if contract == 0:
            # A copy as a single axis, which can lie in one way only. What `transposed_in_memory`
            # does would keep a program from being exported.
            copy = jax.lax.optimization_barrier(weights.T.ravel())
            weights = copy.reshape(weights.shape[::-1])
        return jax.lax.optimization_barrier(dot(weights, rows, contract=1)).T

    return jax.lax.platform_dependent(rows, weights, cpu=turned, default=direct)


def weight_gradient(
    inputs: Float[Array, "*any inner"], cotangents: Float[Array, "*any outer"]
) -> Float[Array, "inner outer"]:
    """The gradient of w in `inputs @ w`: one product over all leading axes together."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    # A CPU multiplies bfloat16 at half its rate if the left factor is read down its columns.
    columns = transposed_in_memory(rows) if rows.dtype == jnp.bfloat16 else rows.T
    return dot(columns, cotangents.reshape(-1, cotangents.shape[-1]))


def transposed_in_memory(matrix: Float[Array, "rows columns"]) -> Float[Array, "columns rows"]:
    """The transpose as a copy, where `matrix.T` is another way to read the same numbers."""
    return with_layout_constraint(matrix.T, Layout(major_to_minor=(0, 1)))


def as_bits(x: Array) -> Array:
    """What a loop can keep of every time step without loss of speed: bfloat16 as its bits.

    A CPU would store each slice by way of float32, one number at a time.
    """
    return _bits(x) if x.dtype == jnp.bfloat16 else x


@jax.custom_jvp
def _bits(x: Array) -> Array:
    return x.view(jnp.uint16)


@_bits.defjvp
def _refuse(*_: Any) -> NoReturn:
    # Bits have no derivative: jax would take it for 0, and second derivatives would be wrong.
    raise InputError("precision=bfloat16: its gradients have no derivatives; use precision=float32")


def from_bits(x: Array) -> Array:
    """What was kept by `as_bits`."""
    return x.view(jnp.bfloat16) if x.dtype == jnp.uint16 else x


def matmul(
    x: Float[Array, "*any inner"], weights: Float[Array, "inner outer"], precision: Precision
) -> Float[Array, "*any outer"]:
    """`x @ weights`, with gradients in the same precision.

    Args:
      x: the left factor, with any number of leading axes.
      weights: the master weights; their gradient has their own dtype.
      precision: float32 multiplies the factors as they are, at the platform's default precision;
        bfloat16 rounds both factors and, in the backward pass, the cotangent.
    """
    if precision == "float32":
        return x @ weights
    return _matmul_bfloat16(*varying_alike((x, weights)))


@jax.custom_vjp
def _matmul_bfloat16(x, weights):
    return dot(operand(x, "bfloat16"), operand(weights, "bfloat16"))


def _matmul_forward(x, weights):
    factors = operand(x, "bfloat16"), operand(weights, "bfloat16")
    return dot(*factors), factors


def _matmul_backward(factors, cotangent):
    x, weights = factors
    cotangent = operand(cotangent, "bfloat16")
    return dot(cotangent, weights, contract=1), weight_gradient(x, cotangent)


_matmul_bfloat16.defvjp(_matmul_forward, _matmul_backward)
