"""What TensorBoard shows of a run: curves over the windows trained on, and its gates."""

import functools
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from zaremba_jax.array_types import Masks, ModelParams, Outputs, Tokens
from zaremba_jax.config import ComputeConfig
from zaremba_jax.errors import InputError
from zaremba_jax.inference.gates import gate_values
from zaremba_jax.rnn import unroll_layer, zero_state

Gates = tuple[dict[str, Outputs], ...]  # of each layer, by letter
_TANHS = ("u", "n", "h")  # range from -1; the other gates are sigmoids, which range from 0
_BINS = 20
_CURVES = ("learning_rate", "words_per_second")


def check_installed() -> None:
    """Checks that the package that writes the files is installed.

    Raises:
      InputError: it is not.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise InputError(
            "--tensorboard: needs tensorboardX, which is not installed; leave it out, or"
            " pip install 'zaremba-jax[tensorboard]'"
        ) from None


class Board:
    """Writes points into a folder, at steps that count the windows trained on.

    A resumed run repeats what came after its last checkpoint and writes those points again.
    The first event of each file tells TensorBoard from which step on the file replaces
    earlier points.
    """

    def __init__(self, folder: Path, step: int):
        """`step` is where the run stands. With several hosts, only the first writes."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._summary, self._proto = summary, cast(Any, event_pb2)  # made at run time
        self._writer = None
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names; within a second, the step
            # decides it. Not a SummaryWriter: its flush leaves queued points unwritten.
            self._writer = EventsWriter(str(folder / "events"), f".{step:012}")
            log = self._proto.SessionLog
            self._write(step + 1, session_log=log(status=log.START))

    def windows(
        self, step: int, chunk_statistics: dict[str, float], so_far: dict[str, Any]
    ) -> None:
        """Adds points for the last windows, from `averages`, and for the epoch so far."""
        points = {f"train/{name}": value for name, value in chunk_statistics.items()}
        points["train/perplexity_of_epoch_so_far"] = so_far["train_perplexity"]
        self._add(step, points | {name: so_far[name] for name in _CURVES})

    def epoch(self, step: int, record: dict[str, Any], gates: Gates) -> None:
        """Adds an epoch's estimates and, for each gate, a histogram over its range of values."""
        estimates = {
            f"valid/{name.removeprefix('valid_')}": value
            for name, value in record.items()
            if name.startswith("valid_") and isinstance(value, float)
        }
        self._add(step, estimates)
        for depth, of_layer in enumerate(gates, start=1):
            for gate, values in of_layer.items():
                edges = np.linspace(-1 if gate in _TANHS else 0, 1, _BINS + 1)
                tag, content = f"gates/layer_{depth}_{gate}", np.asarray(values, np.float64)
                self._write(step, summary=self._summary.histogram(tag, content, edges))

    def _add(self, step: int, points: dict[str, float]) -> None:
        for name, value in points.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def _write(self, step: int, **fields: Any) -> None:
        if self._writer is not None:
            event = self._proto.Event(wall_time=time.time(), step=step, **fields)
            self._writer.write_event(event)

    def flush(self) -> None:
        """Writes all points to disk."""
        if self._writer is not None:
            self._writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def averages(windows: np.ndarray) -> dict[str, float]:
    """Statistics of windows [..., 2], nats and gradient norms, by the names of their curves."""
    nll, norms = windows[..., 0], windows[..., 1]
    return {
        "nats": float(nll.mean()),
        "gradient_norm": float(norms.mean()),
        "gradient_norm_largest": float(norms.max()),
    }


def gate_activations(
    params: ModelParams,
    ids: np.ndarray,
    streams: int,
    steps: int,
    compute: ComputeConfig = ComputeConfig(),
    masks: Masks | None = None,
) -> Gates:
    """The gates of a model that reads the beginning of a text from the zero state.

    Args:
      params: the model.
      ids: the text, at least one token.
      streams: streams side by side, fewer if the text has fewer tokens.
      steps: tokens of each stream, fewer if the text is too short.
      compute: precision and kernel.
      masks: from `regularizers.expected_masks`.
    """
    streams = min(streams, len(ids))
    steps = min(steps, len(ids) // streams)
    tokens = ids[: streams * steps].reshape(streams, steps).T
    return _gates(params, jnp.asarray(tokens), compute, masks)


@functools.partial(jax.jit, static_argnames="compute")
def _gates(
    params: ModelParams, tokens: Tokens, compute: ComputeConfig, masks: Masks | None
) -> Gates:
    layers = params.layers
    recurrent = masks.recurrent if masks is not None else None
    inputs, gates = params.embedding[tokens], []
    for layer, state, through_time in zip(
        layers,
        zero_state(layers, tokens.shape[1]),
        recurrent or (None,) * len(layers),
        strict=True,
    ):
        outputs, _ = unroll_layer(layer, inputs, state, through_time, compute)
        gates.append(gate_values(layer, inputs, outputs, state, compute.precision))
        inputs = outputs
    return tuple(gates)
