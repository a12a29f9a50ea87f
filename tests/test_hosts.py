"""Runs on several devices or in several processes, which stand for hosts, equal those on one."""

import contextlib
import json
import re
import signal
import socket
import time

import invoke
import jax
import numpy as np
import pytest
from invoke import (
    CHUNK,
    MEMBERS,
    SINGLE,
    assert_refused,
    free_port,
    metrics,
    run_in,
    stored,
    summary_of,
    untimed,
)

from experiments import ensemble, ptb
from experiments.cli import opened_runs
from zaremba_jax.checkpoint import CHECKSUMS_FILE

OFTEN = "--checkpoint_minutes=0"
ENSEMBLE = ("-m", ensemble.__name__, *MEMBERS, "--workdir=run")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The workdir of an ensemble that one process trained without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    run_in(folder, *MEMBERS, "--workdir=run", program=ensemble)
    return folder / "run"


@contextlib.contextmanager
def on_hosts(count, folder, *flags, command=ENSEMBLE, of_last=()):
    """Starts `count` processes that run a program together; none outlives a failure.

    The last has further flags.
    """
    shared = (f"--coordinator_address=localhost:{free_port()}", f"--num_processes={count}", *flags)
    hosts = [
        invoke.start_python(
            *(*command, f"--process_id={rank}", *shared, *(of_last if rank + 1 == count else ())),
            cwd=folder,
            JAX_PLATFORMS="cpu",
        )
        for rank in range(count)
    ]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            host.communicate(timeout=100)


def ends_of(hosts):
    """Status, output and errors of each process."""
    outputs = [host.communicate(timeout=300) for host in hosts]
    return [
        (host.returncode, re.sub(r"\[Gloo\].*\n", "", out), err)  # Gloo's own greeting
        for host, (out, err) in zip(hosts, outputs, strict=True)
    ]


def wait_for_checkpoint(hosts, folder):
    deadline = time.monotonic() + 300
    while not any(folder.glob(f"run/checkpoints/*/{CHECKSUMS_FILE}")):
        assert [host.poll() for host in hosts] == [None] * len(hosts), hosts[0].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_perplexities(records, expected):
    for record, other in zip(records, expected, strict=True):
        for name in ("valid_perplexity", "test_perplexity"):
            assert record[name] == pytest.approx(other[name], rel=1e-5)


def assert_ends_as_on_one_host(ends, folder, reference):
    assert [status for status, _, _ in ends] == [0] * len(ends), ends
    assert "resuming run after epoch " in ends[0][1]
    assert [out for _, out, _ in ends[1:]] == [""] * (len(ends) - 1)
    assert_same_perplexities(
        summary_of(folder / "run")["members"], summary_of(reference)["members"]
    )


@pytest.mark.slow
def test_run_on_two_hosts_that_is_killed_on_one_resumes_and_ends_as_on_one_host(reference, folder):
    with on_hosts(2, folder, OFTEN) as hosts:
        wait_for_checkpoint(hosts, folder)
        hosts[1].kill()  # the other cannot go on by itself
    assert not (folder / "run" / "summary.json").exists()
    with on_hosts(2, folder) as hosts:
        assert_ends_as_on_one_host(ends_of(hosts), folder, reference)


@pytest.mark.slow
def test_signal_to_one_of_four_hosts_has_all_save_and_three_of_them_end_it_as_one_to_the_bit(
    reference, folder
):
    with on_hosts(4, folder, OFTEN) as hosts:
        wait_for_checkpoint(hosts, folder)
        hosts[2].send_signal(signal.SIGTERM)
        ends = ends_of(hosts)
    assert [status for status, _, _ in ends] == [128 + signal.SIGTERM] * 4, ends
    assert "stopped by SIGTERM after epoch 0, window " in ends[0][1]
    with on_hosts(3, folder) as hosts:
        assert_ends_as_on_one_host(ends_of(hosts), folder, reference)
    # One member each, and before that one process had padding: all run the program of one model.
    (actual,), chunks = stored(folder / "run"), stored(reference)
    expected = jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert untimed(metrics(folder / "run")) == untimed(metrics(reference))


@pytest.mark.slow
def test_one_model_with_its_batch_on_two_devices_is_the_same_run(reference, folder):
    flags = (*SINGLE, "--data_parallel=2", "--workdir=spread")
    with invoke.start(*flags, cwd=folder, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2") as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    member = summary_of(reference)["members"][0]
    assert_same_perplexities([summary_of(folder / "spread")], [member])
    assert_refused(invoke.run(*SINGLE, "--data_parallel=2"), "data_parallel=2: there are 1 dev")


@pytest.mark.slow
def test_one_model_with_its_batch_on_two_hosts_that_slurm_knows_is_the_same_run(reference, folder):
    slurm = {
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    flags = (*SINGLE, "--data_parallel=2", "--coordinator_address=cluster", "--workdir=spread")
    hosts = [
        invoke.start(*flags, cwd=folder, program=ptb, **slurm, SLURM_PROCID=str(rank))
        for rank in range(2)
    ]
    ends = ends_of(hosts)
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert re.search("^2/2 ", ends[0][1], re.MULTILINE)
    assert ends[1][1] == ""
    member = summary_of(reference)["members"][0]
    assert_same_perplexities([summary_of(folder / "spread")], [member])


# `experiments.reproduce` with a tiny `small` and another text as the Penn Treebank.
REPRODUCE = """
from experiments import reproduce
from experiments.cli.program import run
from tests.experiments.test_reproduce import TINY
from zaremba_jax.presets import PRESETS
from zaremba_jax.data.encoding import read_corpus

PRESETS["small"] = TINY
reproduce.load_corpus = lambda _: read_corpus("PTB", "train.txt", "valid.txt", "test.txt")
run(reproduce.main)
"""


@pytest.mark.slow
def test_model_that_is_left_over_is_reproduced_on_two_hosts_too(folder):
    flags = ("--rows=small", "--members=3", f"--chunk={CHUNK}", "--workdir=runs", "--results=held")
    with on_hosts(2, folder, *flags, command=("-c", REPRODUCE)) as hosts:
        ends = ends_of(hosts)
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert {path.parent.name for path in folder.glob("held/*/summary.json")} == {
        "small-seeds0-1",
        "small-seed2",
    }
    mixtures = json.loads((folder / "held" / "small-mixtures.json").read_text())
    assert mixtures["seeds"] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["settings", "text", "samples_each_epoch"])
def test_hosts_that_were_given_different_things_train_nothing(folder, what):
    (folder / "other.txt").write_text((folder / "train.txt").read_text() * 2)
    differing = {
        "settings": ("--learning_rate=0.5",),
        "text": ("--train_file=other.txt",),
        "samples_each_epoch": ("--samples_each_epoch=1",),
    }
    with on_hosts(2, folder, of_last=differing[what]) as hosts:
        ends = ends_of(hosts)
    told = "differ between the hosts; give the same command and the same text on each"
    for status, _, err in ends:
        assert status == 2, err
        assert err.startswith(f"error: {what}"), err
        assert told in err
    assert not (folder / "run").exists()


@pytest.mark.slow
def test_host_that_is_left_alone_by_a_mistake_says_so(folder):
    with on_hosts(2, folder, of_last=("--train_file=absent.txt",)) as hosts:
        ends = ends_of(hosts)
    assert [status for status, _, _ in ends] == [1, 2], ends
    assert ends[0][2].startswith("error: another host of the run has ended, or cannot be reached;")
    assert ends[0][2].count("\n") == 1
    assert ends[1][2].startswith("error: absent.txt: no such file;")


def test_port_that_is_taken_is_refused(folder):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        flags = (f"--coordinator_address={address}", "--num_processes=2", "--process_id=0")
        outcome = invoke.run(*SINGLE, *flags, program=ptb)
    assert_refused(outcome, f"--coordinator_address={address}: ", "give the host of process 0")


@pytest.mark.slow
def test_cluster_that_is_none_is_refused_with_what_to_give_instead(folder, monkeypatch):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    outcome = invoke.run_process("--coordinator_address=cluster", cwd=folder)
    assert_refused(outcome, "--coordinator_address=cluster: no cluster", "--num_processes")


def test_process_without_a_device_in_the_run_is_refused(folder, monkeypatch):
    monkeypatch.setattr(opened_runs, "require_alike", lambda **_: None)  # nobody answers
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    outcome = invoke.run(*SINGLE, program=ptb)
    assert_refused(outcome, "data_parallel=1: leaves 1 of 2 processes without a device", "give")


@pytest.mark.parametrize("host", ["node1..cluster", f"{'a' * 64}.cluster"])
def test_host_that_can_have_no_address_is_refused(folder, host):
    flags = (f"--coordinator_address={host}:1234", "--num_processes=2", "--process_id=1")
    assert_refused(invoke.run(*SINGLE, *flags), f"--coordinator_address={host}:1234: ")


def test_host_that_nobody_knows_is_refused(folder, monkeypatch):
    def fail(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)  # a name server may take long, or answer
    flags = ("--coordinator_address=host:1", "--num_processes=2", "--process_id=1")
    telling = "--coordinator_address=host:1: ", "give the host of process 0 and a free port on it"
    assert_refused(invoke.run(*SINGLE, *flags), *telling)
