"""A run whose terminal is closed saves and stops, though nobody reads what it says."""

import os
import signal
import subprocess
import sys
import time

from invoke import FLAGS, ROOT, WINDOWS, metrics, run

OFTEN = "--checkpoint_minutes=0"


def test_run_whose_terminal_is_closed_is_saved_and_resumes(folder):
    ours, terminal = os.openpty()
    command = (sys.executable, "-m", "experiments.ptb", *FLAGS, "--workdir=run", OFTEN)
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        command, env=env, stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        while not list(folder.glob("run/checkpoints/*/checksums.json")):
            assert process.poll() is None, os.read(ours, 100_000)
            time.sleep(0.01)
        os.close(ours)
        for _ in range(2):  # the shell sends one, the system another
            process.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        assert process.wait(100) == 128 + signal.SIGHUP
    saved = max(int(path.parent.name) for path in folder.glob("run/checkpoints/*/checksums.json"))
    assert 0 < saved < WINDOWS
    resumed = run(*FLAGS, "--workdir=run")
    assert resumed.status == 0, resumed.err
    assert f"resuming run after epoch 0, window {saved}" in resumed.out
    assert len(metrics(folder / "run")) == 2
