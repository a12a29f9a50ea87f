import functools
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contender_examples import broken, killed, refused
from flax import nnx
from invoke import ROOT, Outcome, assert_refused, run_elsewhere
from layer_examples import equations
from preloaded import server
from rich.console import Console

from experiments.benchmarks import (
    contenders,
    evaluation,
    jax_peers,
    own_process,
    start_up,
    step_times,
    torch_peer,
)
from experiments.benchmarks.contenders import Contender, has_papers_layout
from experiments.benchmarks.step_times import largest_products, quartiles, step_flops
from experiments.training import turns
from zaremba_jax.array_types import ModelParams, SoftmaxParams
from zaremba_jax.config import override
from zaremba_jax.data.published import PTB_VOCABULARY_SIZE
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import TOKENS_AT_ONCE, text_nll
from zaremba_jax.interop.flax_weights import linen_layer, nnx_layer
from zaremba_jax.interop.torch_weights import model_to_torch
from zaremba_jax.model import Model, init_params
from zaremba_jax.presets import MEDIUM, QUICK, from_dict
from zaremba_jax.rnn import zero_state
from zaremba_jax.train import init_train_state, train_windows, window_loss

SIZES = {"hidden_size": 4, "batch_size": 2, "unroll": 3}
TINY = override(QUICK, **SIZES)
OURS, SCAN = Contender(contenders.OURS, TINY), Contender("scan", TINY)
FLAGS = (*(f"--{name}={value}" for name, value in SIZES.items()), "--rounds=3", "--windows=2")


def benchmark(*flags: str) -> Outcome:
    completed = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *FLAGS, *flags],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Outcome(completed.returncode, completed.stdout, completed.stderr)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a benchmark of every contender that any machine can run prints and writes."""
    path = tmp_path_factory.mktemp("benchmark") / "results.json"
    outcome = benchmark(
        "--peers=scan,zaremba_jax:bfloat16,flax,nnx", "--members=2", f"--json={path}"
    )
    assert outcome.status == 0, outcome.err
    return outcome.out, json.loads(path.read_text())


@pytest.mark.slow
def test_every_contender_has_a_row_and_a_record(measured):
    out, results = measured
    names = [record["contender"] for record in results["contenders"]]
    ours = "zaremba_jax:float32"
    ensembles = [f"{ours} × 2, {at_once} at once" for at_once in (1, 2)]
    others = ["scan:float32", "zaremba_jax:bfloat16", "flax:float32", "nnx:float32"]
    assert names == [ours, *ensembles, *others]
    for name, line in zip(names, out.splitlines()[1 : 1 + len(names)], strict=True):
        assert line.startswith(f"{name} ")


@pytest.mark.slow
def test_record_agrees_with_itself(measured):
    _, results = measured
    tokens = SIZES["batch_size"] * SIZES["unroll"]
    for record in results["contenders"]:
        lower, median, upper = record["ratio"]
        assert 0 < lower <= median <= upper
        assert record["tokens_per_second"][1] == pytest.approx(
            1e3 * tokens * record["members"] / record["step_ms"][1]
        )
        assert 0 < record["of_floor"][1] < 1
        assert record["first_seconds"] > record["step_ms"][1] / 1e3
        assert record["peak_bytes"] > 0
    assert results["contenders"][0]["ratio"] == [1, 1, 1]
    members = [(record["members"], record["members_at_once"]) for record in results["contenders"]]
    assert members == [(1, 1), (2, 1), (2, 2), *[(1, 1)] * 4]
    assert results["versions"].keys() >= {"python", "jax", "flax"}
    assert results["config"]["hidden_size"] == SIZES["hidden_size"]


@pytest.mark.slow
def test_evaluation_and_start_have_a_line_and_a_record(measured):
    out, results = measured
    assert list(results["evaluation_us"]) == ["zaremba_jax:float32", "zaremba_jax:bfloat16"]
    for lower, median, upper in results["evaluation_us"].values():
        assert 0 < lower <= median <= upper
    parts = results["start_up"]
    assert list(parts) == ["imports", "initial_state", "compilation", "first_window"]
    assert all(seconds > 0 for seconds in parts.values())
    told = " ".join(out.split())
    assert "microseconds per token: zaremba_jax:float32" in told
    assert f"Start of a run, seconds: {sum(parts.values()):.1f} (imports" in told


REFUSED = {
    "--peers=abacus": ("abacus", "flax"),
    "--peers=flax:float64": ("float64", "bfloat16"),
    "--peers=flax,flax:float32": ("flax:float32", "twice"),
    "--peers=cudnn": ("cudnn", "NVIDIA"),
    "--peers=pallas": ("pallas", "needs a TPU", "leave it out"),
    **({} if importlib.util.find_spec("torch") else {"--peers=torch": ("torch", "pip install")}),
    "--peers=flax --cell=gru": ("flax", "leave it out"),
    "--dropout=2": ("dropout=2",),
    "--rounds=1": ("rounds=1: 1 is not integer >= 2",),
    "--vocab_size=50": ("--vocab_size", "random tokens of 10,000 words", "leave it out"),
    "--corpus=ptb --unit=char --min_count=2": ("--corpus, --min_count, --unit", "leave it out"),
    "--json=setup.py/results.json": ("--json=setup.py/results.json", "nothing can be written in"),
    "--scaling=scaling.txt": ("--scaling=scaling.txt", "is not a picture", ".png"),
    "--scaling=setup.py/a.png": ("--scaling=setup.py/a.png", "nothing can be written in"),
    "--tie_weights --embedding_size=4 --hidden_size=4 --scaling=scaling.png": (
        "--scaling=scaling.png: varies one size at a time, but embedding_size=4",
    ),
    "--json=tests": ("--json=tests", "file"),
    "--json=setup.py": ("--json=setup.py", "exists and is not of an earlier benchmark"),
}


def test_what_cannot_be_measured_is_refused_in_one_line():
    lines = [[*FLAGS, *flag.split()] for flag in REFUSED]
    outcomes = run_elsewhere("experiments.benchmark", *lines, cwd=ROOT)
    for outcome, telling in zip(outcomes, REFUSED.values(), strict=True):
        assert_refused(outcome, *telling)


def test_picture_is_refused_before_the_measurements_where_it_cannot_be_drawn(tmp_path):
    line, before = ["--scaling=scaling.png"], "import sys; sys.modules['matplotlib'] = None"
    (outcome,) = run_elsewhere("experiments.benchmark", line, cwd=tmp_path, before=before)
    assert_refused(outcome, "--scaling=scaling.png", "matplotlib", "pip install", "leave it out")


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["compare_evaluation", "scaling_curves", "scaling_figure"])
def test_results_are_written_before_more_is_measured_or_drawn(tmp_path, fails):
    before = f"""
from experiments import benchmark
from experiments.benchmarks import own_process, start_up
from zaremba_jax.errors import InputError
own_process.needs_of = lambda *_: own_process.Needs(1.0, 1)
benchmark.start_up = lambda _: start_up.StartUp(1.0, 1.0, 1.0, 1.0)
def curves(*_, keep):
    keep("tokens per second")
    return "tokens per second"
benchmark.scaling_curves = curves
def fail(*_, **__): raise InputError("not done")
benchmark.{fails} = fail
"""
    line = [*FLAGS, "--peers=", "--json=new/results.json", "--scaling=new/scaling.png"]
    (outcome,) = run_elsewhere("experiments.benchmark", line, cwd=tmp_path, before=before)
    assert_refused(outcome, "not done")
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["contenders"]
    assert results["start_up"]
    assert ("evaluation_us" in results) == (fails != "compare_evaluation")
    assert results.get("scaling") == ("tokens per second" if "figure" in fails else None)


@pytest.fixture
def preloaded(monkeypatch):
    """Has contenders start in processes that need not import the libraries."""
    context = server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)


@pytest.mark.usefixtures("preloaded")
def test_contender_whose_process_was_killed_is_an_error():
    with pytest.raises(InputError, match="its process was killed, perhaps for lack of memory"):
        own_process.needs_of(killed)


@pytest.mark.usefixtures("preloaded")
def test_contender_that_a_device_refuses_is_an_error_in_one_line():
    refusal = r"^cannot run here \(JaxRuntimeError: UNIMPLEMENTED: no such algorithm\)$"
    with pytest.raises(InputError, match=refusal):
        own_process.needs_of(refused)


@pytest.mark.usefixtures("preloaded")
@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_bug_in_a_contender_keeps_its_traceback(error):
    with pytest.raises(error, match=r"^planted$") as caught:
        own_process.needs_of(broken, error)
    assert not isinstance(caught.value, InputError)
    assert "in broken\n" in str(caught.value.__cause__)  # the other process's traceback


def test_bug_in_a_contender_is_never_a_reason_to_leave_it_out(monkeypatch):
    monkeypatch.setattr(own_process, "needs_of", lambda build, _: broken(ValueError))
    for leave_out in (False, True):
        with pytest.raises(ValueError, match=r"^planted$") as caught:
            own_process.needs_of_all([OURS], 1, Console(quiet=True), leave_out=leave_out)
        assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("installed", [False, True])
def test_start_of_a_run_is_that_of_the_package_that_runs(monkeypatch, installed):
    def run(command, *, env, **_):
        started.append((command, env["PYTHONPATH"]))
        return types.SimpleNamespace(returncode=0, stdout="[1, 2, 3, 4]")

    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(start_up.subprocess, "run", run)
    if installed:
        package = types.ModuleType("zaremba_programs")
        monkeypatch.setitem(sys.modules, "experiments", package)
    assert start_up.start_up(TINY) == (1, 2, 3, 4)
    ((command, path),) = started
    package = "zaremba_programs" if installed else "experiments"
    assert f"{package}.benchmarks.start_up" in command
    # So that no file of the user's is imported.
    assert "-P" in command
    assert path.split(os.pathsep) == sys.path


def test_start_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(start_up, "to_dict", lambda _: {"name": "none"})  # as a bug would
    with pytest.raises(InputError, match=r"^the start of a run: its process ended with 1$"):
        start_up.start_up(TINY)


def test_peer_that_cannot_run_is_left_out_unless_named_and_ours_never(monkeypatch, capsys):
    def needs_of(build, _):
        if build.__self__ in refusing:
            raise InputError("cannot run here")
        return own_process.Needs(1.0, 1)

    monkeypatch.setattr(own_process, "needs_of", needs_of)
    everyone, refusing = [OURS, SCAN], [SCAN]
    assert list(own_process.needs_of_all(everyone, 1, Console(), leave_out=True)) == [OURS]
    assert capsys.readouterr().out == "scan:float32 is left out: cannot run here\n"
    with pytest.raises(InputError, match=r"^scan:float32: cannot run here; leave it out$"):
        own_process.needs_of_all(everyone, 1, Console(), leave_out=False)
    refusing = [OURS]
    with pytest.raises(InputError, match=r"^zaremba_jax:float32: cannot run here$"):
        own_process.needs_of_all(everyone, 1, Console(), leave_out=True)


def test_torch_s_own_refusals_are_errors_in_one_line_and_others_bugs():
    with (
        pytest.raises(InputError, match=r"^torch cannot run this here \(no such algorithm\)$"),
        torch_peer.refusals_of_torch(),
    ):
        raise RuntimeError("no such algorithm\nin a file that is of no interest")
    with pytest.raises(TypeError, match=r"^planted$"), torch_peer.refusals_of_torch():
        broken(TypeError)


@pytest.mark.parametrize("name", ["flax", "nnx"])
def test_peers_on_jax_train_the_same_network_as_ours(name, monkeypatch):
    config = override(TINY, dropout=0.0)
    text = contenders.sample_windows(config, 1)
    monkeypatch.setattr(jax_peers, "_train_by_optax", lambda *built: built)
    built: Any = contenders.BUILDERS[name](config, text)
    _, _, params, carries, loss = built
    window, key = jnp.asarray(text[0]), jax.random.key(0)
    actual = loss_and_norm(lambda params: loss(params, window, carries, key)[0], params)

    def ours(params, kernel):
        state = zero_state(params.layers, config.train.batch_size)
        compute = override(config, kernel=kernel).compute
        return window_loss(params, window[:-1], window[1:], state, compute=compute)[0]

    for kernel in ("custom_vjp", "scan"):
        desired = loss_and_norm(lambda params, kernel=kernel: ours(params, kernel), as_ours(params))
        np.testing.assert_allclose(actual, desired, rtol=1e-5)


def test_torch_trains_the_same_network_as_ours(monkeypatch):
    torch = pytest.importorskip("torch")
    config = override(TINY, dropout=0.0, second_bias=True, clip_norm=1.0)  # which clips
    text = contenders.sample_windows(config, 2)
    state = init_train_state(config, PTB_VOCABULARY_SIZE)
    model = torch_peer.build_model(config)
    weights = model_to_torch(state.params)
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    loss, _ = model(torch.tensor(text[0], dtype=torch.long), None)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), np.inf)
    monkeypatch.setattr(torch_peer, "build_model", lambda *_: model)
    torch_peer.build_torch(config, text)()
    new_state, statistics = train_windows(config, state, jnp.asarray(text))
    np.testing.assert_allclose(loss.item(), statistics.nll[0] * config.train.unroll, rtol=1e-5)
    np.testing.assert_allclose(norm.item(), statistics.gradient_norm[0], rtol=1e-5)
    for name, array in model_to_torch(new_state.params).items():
        np.testing.assert_allclose(model.state_dict()[name], array, rtol=1e-5, atol=1e-7)


def test_torch_reads_a_text_as_ours_does(monkeypatch):
    torch = pytest.importorskip("torch")
    config = override(TINY, dropout=0.5, second_bias=True)  # which neither has while it reads
    params = init_params(config.model, PTB_VOCABULARY_SIZE, key=jax.random.key(0))
    torch_model, sums = torch_peer.build_model(config), []
    weights = model_to_torch(params)
    torch_model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    torch_model.register_forward_hook(lambda _, __, results: sums.append(results[0].item()))
    monkeypatch.setattr(torch_peer, "build_model", lambda _: torch_model)
    ids = np.arange(2 * TOKENS_AT_ONCE + 1)
    torch_peer.build_torch_reader(config, ids)()
    vocabulary = Vocabulary(tuple(map(str, range(PTB_VOCABULARY_SIZE))))
    nats = text_nll(Model(params, config, vocabulary), ids)
    np.testing.assert_allclose(sums, nats.reshape(2, -1).sum(axis=1), rtol=1e-5)


def test_evaluation_is_timed_per_token_of_single_models_that_have_a_reader(monkeypatch):
    def build(config, ids):
        return functools.partial(read.append, (config.compute.precision, len(ids) - 1))

    def take_turns(turns, rounds):
        for turn in turns.values():
            turn()
        return {name: np.full(rounds, 2.0) for name in turns}

    read: list[tuple[str, int]] = []
    monkeypatch.setattr(evaluation, "READERS", {contenders.OURS: build})
    monkeypatch.setattr(evaluation, "take_turns", take_turns)
    rounded = Contender(contenders.OURS, override(TINY, precision="bfloat16"))
    two = Contender(contenders.OURS, TINY, members=2, at_once=2)
    per_token = evaluation.compare_evaluation([OURS, SCAN, rounded, two], 3)
    assert read == [("float32", evaluation.TOKENS), ("bfloat16", evaluation.TOKENS)]
    of_each = (pytest.approx(2e6 / evaluation.TOKENS),) * 3
    assert per_token == {"zaremba_jax:float32": of_each, "zaremba_jax:bfloat16": of_each}


def loss_and_norm(loss, params):
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return value, optax.tree.norm(gradient)


def as_ours(params):
    """The weights of `jax_peers.LinenModel` or `NnxModel` as those of this library."""
    if isinstance(params, nnx.State):
        model = jax_peers.NnxModel(TINY, nnx.Rngs(0))
        nnx.update(model, params)
        layers = tuple(nnx_layer(layer.cell) for layer in model.layers)
        dense: Any = model.dense
        softmax = SoftmaxParams(dense.kernel[...], dense.bias[...])
        return ModelParams(model.embed.embedding[...], layers, softmax)
    weights = params["params"]
    cell = nn.OptimizedLSTMCell(TINY.model.hidden_size)
    layers = tuple(linen_layer(cell, weights[name]) for name in sorted(weights) if "Cell" in name)
    softmax = SoftmaxParams(weights["Dense_0"]["kernel"], weights["Dense_0"]["bias"])
    return ModelParams(weights["Embed_0"]["embedding"], layers, softmax)


@pytest.mark.slow
def test_members_are_timed_as_an_ensemble_trains_them_chunk_after_chunk(monkeypatch):
    chunks, train_members = [], contenders.train_members

    def counted(config, states, *rest):
        chunks.append(len(states.step))
        return train_members(config, states, *rest)

    monkeypatch.setattr(contenders, "train_members", counted)
    run = contenders.build_members(TINY, contenders.sample_windows(TINY, 2), members=3, at_once=2)
    run()
    run()
    assert chunks == [2, 1, 2, 1]


def test_members_at_once_double_up_to_all():
    sizes = [contenders.doublings(members) for members in (1, 2, 4, 5)]
    assert sizes == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 5]]


@pytest.mark.parametrize(
    "changes",
    [
        *({"cell": "tanh"}, {"l2": 0.1}, {"tie_weights": True}, {"average_from": 1}),
        {"optimizer": "adam", "learning_rate": 0.001},
    ],
)
def test_peers_have_the_paper_s_model_of_any_size_and_no_other(changes):
    sized = override(QUICK, hidden_size=7, dropout=0.3, unroll=2)
    assert has_papers_layout(sized)
    assert not has_papers_layout(override(sized, **changes))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_torch_is_measured_in_every_precision_that_it_has_here(tmp_path):
    outcome = benchmark(f"--json={tmp_path / 'results.json'}")
    assert outcome.status == 0, outcome.err
    results = json.loads((tmp_path / "results.json").read_text())
    names = {record["contender"] for record in results["contenders"]}
    assert "torch:float32" in names
    left_out = "torch:bfloat16 is left out" in outcome.out
    assert left_out != ("torch:bfloat16" in names)
    if left_out:
        assert_refused(benchmark("--peers=torch:bfloat16"), "torch:bfloat16", "leave it out")
    assert "torch" in results["versions"]


def test_floor_counts_two_operations_a_weight_forward_and_four_backward():
    weights = 2 * 8 * 650**2 + 650 * 10_000
    assert step_flops(MEDIUM) == 6 * weights * 35 * 20


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_floor_counts_the_weights_that_the_model_multiplies_by(cell):
    config = override(MEDIUM, cell=cell, layers=3, embedding_size=70)
    params = jax.eval_shape(lambda: init_train_state(config, 10_000)).params
    products = [w for p in params.layers for w in (p.input_weights, p.recurrent_weights)]
    weights = sum(w.size for w in (*products, params.softmax.weights))
    assert step_flops(config) == 6 * weights * 35 * 20


def test_products_are_those_of_the_softmax_layer():
    matmuls = largest_products(TINY)
    assert matmuls["outputs"].flops == matmuls["gradient"].flops == 4 * 2 * 6 * 4 * 10_000
    for product in matmuls.values():
        product.run()


def test_contenders_take_turns_and_every_other_round_goes_backwards():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = turns.take_turns(runs, rounds=3)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_turns_are_timed_one_by_one(monkeypatch):
    clock = [0.0]

    def run(seconds):
        clock[0] += seconds

    monkeypatch.setattr(turns, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    work = {name: functools.partial(run, took) for name, took in (("long", 5.0), ("short", 1.0))}
    seconds = turns.take_turns(work, 3)
    assert {name: x.tolist() for name, x in seconds.items()} == {"long": [5] * 3, "short": [1] * 3}


def test_quartiles_of_a_known_sample():
    assert quartiles(np.array([5, 1, 2, 4, 3])) == (2, 3, 4)


def test_memory_of_a_process_of_its_own_counts_what_it_held():
    needs = own_process.needs_of(hold, 300)
    assert 290e6 < needs.peak_bytes < 400e6  # it may reuse what start-up has freed
    assert needs.first_seconds > 0


def hold(megabytes):
    """A contender that needs that much memory."""
    return lambda: np.ones(megabytes * 1_000_000, np.int8).sum()


@pytest.mark.slow
def test_ratio_is_time_per_token_over_that_of_ours(tmp_path):
    before = """
import numpy as np
from experiments.benchmarks import own_process, step_times
own_process.needs_of = lambda *_: own_process.Needs(1.0, 1)
step_times.take_turns = lambda runs, rounds: {
    name: np.full(rounds, 2.0 if name.startswith("scan") else 1.0) for name in runs
}
"""
    line = [*FLAGS, "--peers=scan", "--members=2", "--json=results.json"]
    (outcome,) = run_elsewhere("experiments.benchmark", line, cwd=tmp_path, before=before)
    assert outcome.status == 0, outcome.err
    results = json.loads((tmp_path / "results.json").read_text())
    records = results["contenders"]
    assert [record["ratio"] for record in records] == [[x] * 3 for x in (1, 0.5, 0.5, 2)]
    config = from_dict(results["config"])
    least = step_times.step_flops(config) / (1e9 * results["peak_gflops"]["float32"])
    for record in records:
        step = record["step_ms"][1] / 1e3
        assert record["of_floor"][1] == pytest.approx(record["members"] * least / step)


@pytest.mark.parametrize("name", ["flax", "nnx"])
def test_peers_drop_at_all_the_paper_s_sites(name, monkeypatch):
    config = override(TINY, layers=3, dropout=0.5)
    monkeypatch.setattr(jax_peers, "_train_by_optax", lambda *built: built)
    built: Any = contenders.BUILDERS[name](config, contenders.sample_windows(config, 1))
    _, _, params, carries, loss = built
    window = jnp.asarray(contenders.sample_windows(config, 1)[0])
    program = jax.make_jaxpr(lambda params, key: loss(params, window, carries, key)[0])(
        params, jax.random.key(0)
    )
    sites = [x.outvars[0].aval.shape for x in equations(program.jaxpr, "random_bits")]
    assert sites == [(config.train.unroll, config.train.batch_size, config.model.hidden_size)] * 4
