"""The implementations of a recurrent layer, and the choice among them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zaremba_jax.array_types import (
    Activations,
    CellName,
    LayerParams,
    LayerState,
    LSTMState,
    Outputs,
    RecurrentMasks,
)
from zaremba_jax.cells import project_inputs, step
from zaremba_jax.config import KernelName, Precision
from zaremba_jax.kernels import pallas_gpu, pallas_tpu
from zaremba_jax.kernels.any_cell import cell_layer
from zaremba_jax.kernels.lstm import lstm_layer, lstm_layer_with

Layer = Callable[
    [LayerParams, Activations, LayerState, RecurrentMasks | None, Precision],
    tuple[Outputs, LayerState],
]


def choose(kernel: KernelName, cell: CellName, masks: RecurrentMasks | None) -> str:
    """The implementation that runs a layer, by its name in `IMPLEMENTATIONS`.

    `pallas` serves only the LSTM without noise through time; other layers fall back to `xla`,
    as does, on a TPU, an LSTM whose W_h does not fit in VMEM, which `pallas_layer` checks.
    `auto` is `xla` here: programs that measure replace it beforehand.
    """
    if kernel == "auto" or (kernel == "pallas" and not (cell == "lstm" and masks is None)):
        return "xla"
    return kernel


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


def xla_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    """Scans over time with hand-written backward passes."""
    if params.cell == "lstm" and isinstance(state, LSTMState) and masks is None:
        return lstm_layer(params, inputs, state, precision)
    return cell_layer(params, inputs, state, _of_every_step(masks, inputs), precision)


def pallas_layer(
    params: LayerParams,
    inputs: Activations,
    state: LayerState,
    masks: RecurrentMasks | None,
    precision: Precision,
) -> tuple[Outputs, LayerState]:
    """The same with kernels for the time steps on TPUs and NVIDIA GPUs; elsewhere, `xla_layer`.

    Raises:
      ValueError: the cell is not the LSTM, or there is noise through time.
    """
    if not isinstance(state, LSTMState) or masks is not None:
        raise ValueError("pallas: serves only the LSTM without noise through time; use xla")
    xla = functools.partial(lstm_layer, precision=precision)
    on_tpu, on_nvidia = (
        functools.partial(lstm_layer_with, kernels.time_loops(), precision=precision)
        for kernels in (pallas_tpu, pallas_gpu)
    )
    itemsize = 2 if precision == "bfloat16" else params.recurrent_weights.dtype.itemsize
    batch, hidden = state.hidden.shape
    fits = pallas_tpu.fits(batch, hidden, itemsize)
    return jax.lax.platform_dependent(
        params, inputs, state, tpu=on_tpu if fits else xla, cuda=on_nvidia, default=xla
    )


IMPLEMENTATIONS: dict[str, Layer] = {
    "scan": scan_layer,
    "xla": xla_layer,
    "pallas": pallas_layer,
}


def _of_every_step(masks: RecurrentMasks | None, inputs: Activations) -> RecurrentMasks:
    time = inputs.shape[0]
    return jax.tree.map(
        lambda mask: jnp.broadcast_to(mask, (time, *mask.shape[1:])), masks or RecurrentMasks()
    )
