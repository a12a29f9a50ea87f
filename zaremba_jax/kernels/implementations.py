"""The implementations of a recurrent layer, and the choice among them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import (
    Activations,
    LayerParams,
    LayerState,
    LSTMState,
    Outputs,
    RecurrentMasks,
)
from zaremba_jax.cells import project_inputs, step
from zaremba_jax.config import ComputeConfig, KernelName, Precision
from zaremba_jax.kernels.any_cell import cell_layer
from zaremba_jax.kernels.lstm import lstm_layer, lstm_layer_with

Layer = Callable[
    [LayerParams, Activations, LayerState, RecurrentMasks | None, Precision],
    tuple[Outputs, LayerState],
]


class Choice(NamedTuple):
    """What runs a layer.

    Attributes:
      kernel: the implementation's name in `IMPLEMENTATIONS`.
      why_not: why it is not the one that was asked for, as a predicate of the latter ("needs a
        TPU"); None if it is.
    """

    kernel: KernelName
    why_not: str | None = None


def choose(
    compute: ComputeConfig,
    params: LayerParams,
    state: LayerState,
    masks: RecurrentMasks | None,
    platform: str | None = None,
) -> Choice:
    """Decides which implementation runs a layer; everything that has to know asks here.

    Args:
      compute: `kernel` is what is asked for, of which `auto` means `custom_vjp` here: programs
        that measure replace it beforehand.
      params: the layer; of this and the next two only cell, types and shapes matter.
      state: its state.
      masks: the masks on its connections through time.
      platform: "cpu", "gpu" or "tpu"; None for a program that is yet to be compiled for one,
        in which `pallas_layer` leaves that question to the compiler.
    """
    match compute.kernel:
        case "scan" | "custom_vjp":
            return Choice(compute.kernel)
        case "auto":
            return Choice("custom_vjp")
        case "pallas":
            if why_not := _why_not_lstm(params, masks):
                return Choice("custom_vjp", why_not)
            if platform not in ("tpu", None):
                return Choice("custom_vjp", "needs a TPU")
            from zaremba_jax.kernels import pallas_tpu  # which takes long

            is_rounded = compute.precision == "bfloat16"
            itemsize = 2 if is_rounded else params.recurrent_weights.dtype.itemsize
            if not pallas_tpu.fits(*state.hidden.shape, itemsize=itemsize):
                return Choice("custom_vjp", "has no room for W_h on this chip")
            return Choice("pallas")


def _why_not_lstm(params: LayerParams, masks: RecurrentMasks | None) -> str | None:
    """Why the LSTM's own backward pass, `kernels.lstm`, cannot serve a layer; None if it can."""
    if params.cell != "lstm":  # not by its state, which other cells may share
        return "supports only the LSTM"
    return "does not support noise through time" if jax.tree.leaves(masks) else None


def scan_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    """The readable reference for the others: a scan of `cells.step`, differentiated by jax."""

    def readable(state, x):
        state = step(params, x[0], state, x[1], precision)
        return state, state.hidden

    projected = project_inputs(params, inputs, precision)
    masks = _of_every_step(masks, inputs)
    state, outputs = jax.lax.scan(readable, state, (projected, masks))
    return outputs, state


def custom_vjp_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    """Scans over time with a hand-written backward pass, for any cell and any masks."""
    if _why_not_lstm(params, masks):
        return cell_layer(params, inputs, state, _of_every_step(masks, inputs), precision)
    assert isinstance(state, LSTMState)
    return lstm_layer(params, inputs, state, precision)


def pallas_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    """The same with a TPU's kernels for the time steps; on other platforms without them.

    For the layers for which `choose` names it, those of an LSTM without masks.
    """
    from zaremba_jax.kernels import pallas_tpu  # as above

    assert isinstance(state, LSTMState)
    assert not jax.tree.leaves(masks)
    return jax.lax.platform_dependent(
        params,
        inputs,
        state,
        tpu=functools.partial(lstm_layer_with, pallas_tpu.time_loops(), precision=precision),
        default=functools.partial(lstm_layer, precision=precision),
    )


IMPLEMENTATIONS: dict[str, Layer] = {
    "scan": scan_layer,
    "custom_vjp": custom_vjp_layer,
    "pallas": pallas_layer,
}


def _of_every_step(masks: RecurrentMasks | None, inputs: Activations) -> RecurrentMasks:
    """The masks with a time axis of full length; none are those of a record without any."""
    time = inputs.shape[0]
    return jax.tree.map(
        lambda mask: jnp.broadcast_to(mask, (time, *mask.shape[1:])), masks or RecurrentMasks()
    )
