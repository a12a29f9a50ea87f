"""Flags of a run on several hosts."""

import socket

import jax
from absl import flags
from absl.flags import FLAGS
from rich.console import Console

from experiments.cli.help import flag_group
from experiments.cli.terminal import Terminal
from zaremba_jax.errors import InputError

_CLUSTER = "cluster"

with flag_group("several hosts"):
    flags.DEFINE_string(
        "coordinator_address",
        None,
        f"HOST:PORT of process 0, for a run on several hosts; {_CLUSTER}: ask the cluster",
    )
    flags.DEFINE_integer("num_processes", None, "number of processes of the run", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "which process this is, from 0", lower_bound=0)


def join_hosts() -> Console:
    """Joins the run's other processes, if any; to be called before anything uses a device.

    Returns:
      The console, which is silent except on process 0.
    """
    address, numbers = FLAGS.coordinator_address, (FLAGS.num_processes, FLAGS.process_id)
    if address is None and numbers != (None, None):
        raise InputError("--num_processes, --process_id: give --coordinator_address=HOST:PORT too")
    if address == _CLUSTER:
        _join_cluster()
    elif address is not None:
        _join_at(address)
    return Terminal(quiet=address is not None and jax.process_index() > 0)


def _join_cluster() -> None:
    if (FLAGS.num_processes, FLAGS.process_id) != (None, None):
        raise InputError(
            f"--coordinator_address={_CLUSTER}: the cluster numbers the processes; leave out"
            " --num_processes and --process_id"
        )
    try:
        jax.distributed.initialize()
    except ValueError:
        raise InputError(
            f"--coordinator_address={_CLUSTER}: no cluster known to jax started this"
            " process; give HOST:PORT, --num_processes and --process_id"
        ) from None


def _join_at(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator_address={address}: must be HOST:PORT, or {_CLUSTER}")
    count, process_id = FLAGS.num_processes, FLAGS.process_id
    if count is None or process_id is None or process_id >= count:
        raise InputError(
            f"--coordinator_address={address}: needs --num_processes and a lower --process_id"
        )
    _check_address(host, int(port), process_id)
    jax.distributed.initialize(address, count, process_id)


def _check_address(host: str, port: int, process_id: int) -> None:
    """Refuses an address that would crash jax, or that it would only reject after minutes."""
    try:
        socket.getaddrinfo(host.strip("[]"), port)
        if process_id == 0:
            socket.create_server(("", port)).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last: a part of it is empty
        raise InputError(
            f"--coordinator_address={host}:{port}: {error}; give the host of process 0 and a free"
            " port on it"
        ) from None
