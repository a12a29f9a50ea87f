"""What `--tensorboard` writes, read back from its files."""

import contextlib
import io
import struct
import sys
from typing import Any

import invoke
import jax
import numpy as np
import pytest
from invoke import FLAGS, WINDOWS, assert_refused, assert_same_run, metrics, run
from model_examples import model_of
from rich.console import Console
from tensorboardX.proto import event_pb2

from experiments import ensemble, sweep
from experiments.training import tensorboard
from experiments.training.curves import Curves, averages
from experiments.training.tensorboard import TensorBoard
from zaremba_jax.array_types import WindowStatistics
from zaremba_jax.config import override
from zaremba_jax.inference.gates import gate_activations
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK

TIMED = "speed/words_per_second"
SO_FAR = {"train_perplexity": 1.0, "learning_rate": 1.0, "words_per_second": 1.0}
PROTO: Any = event_pb2  # whose names are made at import


def events(path):
    """Every event of a file: a length and its checksum, that many bytes and their checksum."""
    content, offset = path.read_bytes(), 0
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        yield PROTO.Event.FromString(content[offset + 12 : offset + 12 + length])
        offset += length + 16


def points(folder):
    """What TensorBoard shows, by tag: each step with its value or histogram, repeats included."""
    by_tag = {}
    for path in sorted(folder.iterdir()):
        for event in events(path):
            if event.session_log.status == PROTO.SessionLog.START:
                by_tag = {
                    tag: [point for point in series if point[0] < event.step]
                    for tag, series in by_tag.items()
                }
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind is None:
                    continue  # a hyperparameter
                content = value.tensor.string_val if kind == "tensor" else getattr(value, kind)
                by_tag.setdefault(value.tag, []).append((event.step, content))
    return by_tag


def scalars(folder):
    return {tag: series for tag, series in points(folder).items() if "recurrence/" not in tag}


@pytest.mark.slow
def test_points_are_those_of_the_run_and_watching_changes_no_bit(folder):
    assert run(*FLAGS, "--workdir=plain").status == 0
    assert run(*FLAGS, "--workdir=run", "--tensorboard", "--samples_each_epoch=2").status == 0
    assert_same_run(folder / "run", folder / "plain")
    by_tag = points(folder / "run" / "tensorboard")
    chunks = [step for epoch in (0, WINDOWS) for step in (*range(epoch + 3, epoch + 118, 3),)]
    every = sorted({*chunks, WINDOWS, 2 * WINDOWS})
    for tag in ("loss/train_nats", "optimizer/gradient_norm", "optimizer/learning_rate", TIMED):
        assert [step for step, _ in by_tag[tag]] == every
    record = metrics(folder / "run")
    ends = [WINDOWS, 2 * WINDOWS]
    for tag, name in (
        ("loss/valid_perplexity_estimate", "valid_perplexity_estimate"),
        ("optimizer/learning_rate", "learning_rate"),
        ("loss/train_perplexity_of_epoch_so_far", "train_perplexity"),
    ):
        values = dict(by_tag[tag])
        np.testing.assert_allclose([values[s] for s in ends], [r[name] for r in record], rtol=1e-6)
    pairs = zip(
        by_tag["optimizer/gradient_norm"], by_tag["optimizer/gradient_norm_largest"], strict=True
    )
    assert all(0 < mean[1] <= largest[1] for mean, largest in pairs)


@pytest.fixture
def left_open():
    """Closes, after the test, what a killed process would leave open."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_was_cut_off_has_every_point_once(folder, monkeypatch, left_open, killed):
    assert run(*FLAGS, "--workdir=whole", "--tensorboard").status == 0
    windows, close, calls = Curves.windows, Curves.__exit__, []

    def leave_open(curves, *_):
        left_open.callback(close, curves)

    def cut_off(*args):
        windows(*args)
        calls.append(args)
        if len(calls) == 45:  # five chunks after the only checkpoint
            sys.exit(137)

    with monkeypatch.context() as patch:
        patch.setattr(Curves, "windows", cut_off)
        if killed:  # without time to write what is not yet on disk
            patch.setattr(Curves, "__exit__", leave_open)
        assert run(*FLAGS, "--workdir=cut", "--tensorboard").status == 137
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.time, "time", lambda: 1e9)  # the clock goes back
        resumed = run(*FLAGS, "--workdir=cut", "--tensorboard")
    assert "after epoch 1, window 0" in resumed.out
    whole, cut = (scalars(folder / name / "tensorboard") for name in ("whole", "cut"))
    assert [step for step, _ in cut.pop(TIMED)] == [step for step, _ in whole.pop(TIMED)]
    assert cut == whole
    steps = [
        event.step
        for path in (folder / "cut" / "tensorboard").iterdir()
        for event in events(path)
        for value in event.summary.value
        if value.tag == "optimizer/learning_rate"
    ]
    taken_back = 0 if killed else 5  # by the resumed run
    assert len(steps) == len(set(steps)) + taken_back


def test_what_was_flushed_is_on_the_disk(tmp_path):
    steps = list(range(1, 100))
    with Curves([TensorBoard(tmp_path / "board", 0)], {}, Console()) as curves:
        for step in steps:
            curves.windows(step, {}, SO_FAR)
        curves.flush()
        assert [step for step, _ in points(tmp_path / "board")[TIMED]] == steps


def test_sweep_over_learning_rates_has_all_curves_but_theirs(folder):
    flags = ("--vary=learning_rate=0.5,1", "--epochs=1", "--tensorboard", "--workdir=swept")
    outcome = run(*FLAGS, *flags, program=sweep)
    assert (outcome.status, outcome.err) == (0, "")
    tags = scalars(folder / "swept/tensorboard").keys()
    assert "loss/train_perplexity_of_epoch_so_far" in tags
    assert "optimizer/learning_rate" not in tags


def test_full_disk_ends_the_curves_in_one_line_and_not_the_training(tmp_path):
    board, said = TensorBoard(tmp_path / "board", 0), io.StringIO()
    with Curves([board], {"dropout": 0.5}, Console(file=said)) as curves:
        board._writer.close()
        board._writer._writer = open("/dev/full", "wb")  # noqa: SIM115
        for step in (1, 2):
            curves.windows(step, {}, SO_FAR)
            curves.flush()
    (line,) = said.getvalue().splitlines()
    assert "No space left on device" in line
    assert f"{tmp_path}/board'; training goes on without these curves" in line


def test_settings_are_hyperparameters(tmp_path):
    board = TensorBoard(tmp_path / "board", 0)
    with Curves([board], {"dropout": 0.5, "input_dropout": None, "cell": "gru"}, Console()):
        pass
    (path,) = (tmp_path / "board").iterdir()
    tags = [value.tag for event in events(path) for value in event.summary.value]
    assert tags == ["_hparams_/experiment", "_hparams_/session_start_info"]
    assert b"input_dropout" not in path.read_bytes()
    assert b"gru" in path.read_bytes()


@pytest.mark.parametrize(("cell", "letters"), [("lstm", "fiou"), ("gru", "rzn"), ("tanh", "h")])
def test_gates_have_histograms_over_their_whole_range(folder, cell, letters):
    config = override(QUICK, hidden_size=8, cell=cell)
    params = init_params(config.model, 9, key=jax.random.key(0))
    gates = gate_activations(model_of(params, config), np.arange(60, dtype=np.int32) % 9, 4, 5)
    with Curves([TensorBoard(folder / "board", 0)], {}, Console()) as curves:
        curves.epoch(7, {}, gates)
    by_tag = points(folder / "board")
    assert by_tag.keys() == {
        f"recurrence/layer_{depth}_{gate}" for depth in (1, 2) for gate in letters
    }
    for tag, ((step, histogram),) in by_tag.items():
        assert step == 7
        assert sum(histogram.bucket) == histogram.num == 4 * 5 * 8
        lowest = -1 if tag[-1] in "unh" else 0
        assert lowest <= histogram.min <= histogram.max <= max(histogram.bucket_limit) <= 1


def test_an_ensemble_shows_the_means_of_its_members(folder):
    outcome = invoke.run(
        *FLAGS,
        "--chunk=17",
        "--members=2",
        "--workdir=run",
        "--tensorboard",
        "--samples_each_epoch=1",
        program=ensemble,
    )
    assert outcome.status == 0
    by_tag = points(folder / "run" / "tensorboard")
    record = metrics(folder / "run")[-1]
    for name in ("perplexity_estimate", "perplexity_best", "perplexity_worst"):
        assert by_tag[f"loss/valid_{name}"][-1] == (
            2 * WINDOWS,
            np.float32(record[f"valid_{name}"]),
        )
    assert len(by_tag["optimizer/gradient_norm"]) == 2 * WINDOWS // 17
    nats = [value for step, value in by_tag["loss/train_nats"] if step > WINDOWS]  # of equal chunks
    means = np.log(record["train_perplexities"])
    assert np.mean(nats) == pytest.approx(np.mean(means), rel=1e-5)
    assert len(by_tag["recurrence/layer_1_f"]) == 2
    whole = invoke.summary_of(folder / "run")["mixtures"][-1]
    assert by_tag["results/test_perplexity"] == [
        (2 * WINDOWS + 1, np.float32(whole["test_perplexity"]))
    ]
    samples = by_tag["samples/text_summary"]
    assert [step for step, _ in samples] == [WINDOWS, 2 * WINDOWS]
    for _, (text,) in samples:
        assert text.decode().strip() in outcome.out


def test_without_its_package_the_flag_is_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused = run(*FLAGS, "--workdir=run", "--tensorboard")
    assert_refused(refused, "--tensorboard", "pip install 'zaremba-jax[tensorboard]'")
    assert not (folder / "run").exists()


def test_curves_have_the_means_of_windows_and_the_largest_norm():
    nll, norms = map(jax.numpy.array, ([[1.0, 3.0]], [[2.0, 6.0]]))
    windows: Any = WindowStatistics(nll=nll, gradient_norm=norms)
    assert averages(windows) == {
        "loss/train_nats": 2.0,
        "optimizer/gradient_norm": 4.0,
        "optimizer/gradient_norm_largest": 6.0,
    }


def test_board_that_fails_takes_no_point_from_another(tmp_path):
    full, whole = TensorBoard(tmp_path / "full", 0), TensorBoard(tmp_path / "whole", 0)
    with Curves([full, whole], {}, Console(file=io.StringIO())) as curves:
        full._writer.close()
        # Unbuffered, so that writing a point fails and not flushing it.
        full._writer._writer = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        for step in (1, 2):
            curves.windows(step, {}, SO_FAR)
    assert [step for step, _ in points(tmp_path / "whole")[TIMED]] == [1, 2]
