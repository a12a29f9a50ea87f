"""Which implementation of the layers a run takes: the one requested, or the fastest here.

On a TPU, `auto` measures before a run begins: implementations that agree with the
readable scan are timed on the run's own shapes. The choice is kept with the run, so that it
resumes bit for bit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from experiments.training.turns import take_turns
from zaremba_jax.config import Config, KernelName, in_current_names, override
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object
from zaremba_jax.kernels.implementations import Choice, choose
from zaremba_jax.model import init_params
from zaremba_jax.parallel.streams import streams_of_device
from zaremba_jax.regularizers import active_rates, sample_masks
from zaremba_jax.rnn import deep_rnn, zero_state
from zaremba_jax.train import init_train_state, train_windows

CANDIDATES: tuple[KernelName, ...] = ("custom_vjp", "pallas")
_TIMED_WINDOWS, _TIMED_ROUNDS = 5, 3
_COMPARED_STEPS = 4  # time steps of the window on which candidates are compared
_ALLOWED_ERROR = 4.0  # in units of the scan's error in the run's precision
_ALLOWED_ON_TOP = 1e-4  # as a share of an array's largest number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What one device trains: the run, and how much of it at a time."""

    config: Config  # of the run, its batch size that of this device
    vocabulary_size: int  # how many different tokens there are
    members: int = 1  # models side by side
    platform: str  # of the device


def local_workload(
    config: Config, vocabulary_size: int, *, members: int = 1, data_parallel: int = 1
) -> Workload:
    """The workload of a run on this machine's devices."""
    streams = streams_of_device(config.train.batch_size, data_parallel)
    return Workload(
        config=override(config, batch_size=streams),
        vocabulary_size=vocabulary_size,
        members=members,
        platform=jax.devices()[0].platform,
    )


def choose_kernel(workload: Workload, record: Path, console: Console) -> dict[str, Any]:
    """The implementation of the layers, under `kernel`, and how it was chosen.

    A run with `auto` keeps its choice in `record`, which is read if it exists.
    """
    asked = workload.config.compute.kernel
    if asked == "auto" and record.exists():
        return _read(record)
    kernel, why_not = choice_for(workload, "pallas" if asked == "auto" else asked)
    if why_not is not None:
        if asked != "auto":
            console.print(f"kernel: {kernel}, since {asked} {why_not}", soft_wrap=True)
        return {"kernel": kernel, "left_out": {"pallas": why_not}}
    if asked != "auto":
        return {"kernel": asked}
    with console.status("measuring kernels"):
        choice = measure(workload)
    for name, why in choice["left_out"].items():
        console.print(f"kernel: {name} is left out: {why}", soft_wrap=True)
    timings = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in choice["window_seconds"].items())
    console.print(f"kernel: {choice['kernel']}; per window: {timings}", soft_wrap=True)
    return choice


def choice_for(workload: Workload, kernel: KernelName) -> Choice:
    """What runs the layers if `kernel` is asked for, and why it is not that."""
    config, rates = workload.config, active_rates(workload.config.regularizers)
    compute = override(config, kernel=kernel).compute

    def first_layer(tokens: jax.Array) -> Any:
        key = jax.random.key(0)
        layers = init_params(config.model, 1, key=key).layers
        masks = sample_masks(config, rates, tokens, workload.vocabulary_size, key=key).recurrent
        state = zero_state(layers, config.train.batch_size)
        return layers[0], state[0], masks[0] if masks else None

    one_token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params, state, masks = jax.eval_shape(first_layer, one_token)
    return choose(compute, params, state, masks, workload.platform)


def measure(workload: Workload, candidates: Sequence[str] = CANDIDATES) -> dict[str, Any]:
    """Times the candidates that agree with the scan; one that fails is left out.

    Returns:
      The fastest under `kernel`, seconds per window of each under `window_seconds`, and why
      the others were left out under `left_out`. On several hosts, the first one's choice.
    """
    left_out: dict[str, str] = {}
    timed: dict[str, Callable[[], None]] = {}
    trial, held_to = _Trial(workload), yardstick(workload)
    for name in candidates:
        try:
            why = disagreement(workload, name, held_to)
            if why is None:
                trial.run(name)
        except Exception as error:  # whatever a compiler or a device raises
            trial.restart()
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if why is None:
            timed[name] = functools.partial(trial.run, name)
        else:
            left_out[name] = why
    seconds = {
        name: float(np.median(rounds)) / _TIMED_WINDOWS
        for name, rounds in take_turns(timed, _TIMED_ROUNDS).items()
    }
    fastest = min(seconds, key=seconds.__getitem__, default="custom_vjp")
    if jax.process_count() > 1:
        index = multihost_utils.broadcast_one_to_all(np.array(candidates.index(fastest)))
        fastest = candidates[int(index)]
    return {"kernel": fastest, "window_seconds": seconds, "left_out": left_out}


class Yardstick(NamedTuple):
    """What candidates are held to: a few exact time steps, and how far off the scan is."""

    exact: Any  # values and gradients, by float32 products
    errors: list[float]  # of the scan in the run's precision


def yardstick(workload: Workload) -> Yardstick:
    """The yardstick for a run: the scan at its shapes."""
    with jax.default_matmul_precision("highest"):
        exact = _small_window(workload, "scan", "float32")
    usual = _small_window(workload, "scan", workload.config.compute.precision)
    return Yardstick(exact, _errors(usual, exact))


def disagreement(workload: Workload, name: str, held_to: Yardstick) -> str | None:
    """How an implementation differs from the scan in values and gradients; None if it agrees."""
    results = _small_window(workload, name, workload.config.compute.precision)
    for error, usual in zip(_errors(results, held_to.exact), held_to.errors, strict=True):
        allowed = _ALLOWED_ERROR * usual + _ALLOWED_ON_TOP
        if not error <= allowed:
            return (
                f"differs from the scan by {error:.1e} of the largest number; at most"
                f" {allowed:.0e} is allowed"
            )
    return None


def _small_window(workload: Workload, kernel: str, precision: str) -> Any:
    """Outputs, final state and all gradients of the layers over a few time steps."""
    config = override(workload.config, kernel=kernel, precision=precision)
    model, streams = config.model, config.train.batch_size

    def alone(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        layers = init_params(model, 1, key=keys[0]).layers
        inputs = jax.random.normal(keys[1], (_COMPARED_STEPS, streams, model.features))
        weights = jax.random.normal(keys[2], (_COMPARED_STEPS, streams, model.layer_sizes[-1]))

        def loss(layers, inputs, state):
            outputs, state = deep_rnn(layers, inputs, state, compute=config.compute)
            total = (weights * outputs).sum() + sum(x.sum() for x in jax.tree.leaves(state))
            return total, (outputs, state)

        state = zero_state(layers, streams)
        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(layers, inputs, state)

    keys = jax.random.split(jax.random.key(0), min(workload.members, 2))
    # A new function each time, so that nothing compiled before is reused.
    return jax.jit(jax.vmap(alone) if len(keys) > 1 else lambda keys: alone(keys[0]))(keys)


def _errors(results: Any, exact: Any) -> list[float]:
    """The largest difference of each array, over its largest number."""
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(exact), strict=True)
    return [float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-30)) for a, b in pairs]


class _Trial:
    """Trains on random windows of a run's shapes, with any of the implementations."""

    def __init__(self, workload: Workload):
        self._workload = workload
        train = workload.config.train
        tokens = np.random.default_rng(0).integers(
            0, workload.vocabulary_size, (_TIMED_WINDOWS, train.unroll + 1, train.batch_size)
        )
        self._windows = jnp.asarray(tokens, jnp.int32)
        self._programs: dict[str, Any] = {}
        self.restart()

    def restart(self) -> None:
        """Makes the state again, since a program that failed may have consumed it."""
        workload = self._workload
        start = functools.partial(init_train_state, workload.config, workload.vocabulary_size)
        self._state: Any = (
            start() if workload.members == 1 else jax.vmap(start)(jnp.arange(workload.members))
        )

    def run(self, name: str) -> None:
        """Trains on a few windows, and waits for the result."""
        if name not in self._programs:
            self._programs[name] = self._program(name)
        self._state, _ = jax.block_until_ready(self._programs[name](self._state))

    def _program(self, name: str) -> Any:
        config = override(self._workload.config, kernel=name)
        train = functools.partial(train_windows, config, windows=self._windows)
        return train if self._workload.members == 1 else jax.jit(jax.vmap(train), donate_argnums=0)


def _read(path: Path) -> dict[str, Any]:
    try:
        choice = in_current_names(read_json_object(path))
        if choice["kernel"] in CANDIDATES:
            return choice
    except (ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{path}: is damaged; remove it to have the kernels measured again")
