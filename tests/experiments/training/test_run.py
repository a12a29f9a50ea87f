"""What a run reads in an epoch, and what it says when it is stopped."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.training.loop import InterruptedRunError
from experiments.training.run import next_windows
from experiments.training.run_folder import Workdir
from zaremba_jax.data.loader import WindowLoader
from zaremba_jax.data.windows import TextWindows
from zaremba_jax.presets import QUICK


@pytest.mark.parametrize("resident", [True, False])
def test_windows_of_a_run_start_at_the_offset_of_its_epoch(resident):
    text = TextWindows(np.arange(90), 3, 4, seed=0)  # 6 windows
    run: Any = SimpleNamespace(windows=WindowLoader(text, resident=resident))
    for epoch in range(6):
        run.step = epoch * len(text) + 2
        np.testing.assert_array_equal(next_windows(run, 3), text.of_epoch(epoch)[2:5])
    assert len({text.of_epoch(epoch).offset for epoch in range(6)}) > 1


@pytest.mark.parametrize("more", [{}, {"members": 2}, {"members": 2, "vary": "dropout=0"}])
def test_only_a_run_that_has_a_model_before_its_end_says_how_to_try_it(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Workdir("run").write_config(QUICK, **more)
    run: Any = SimpleNamespace(step=7, windows=range(5))
    told = str(InterruptedRunError(run, Workdir("run"), signal.SIGTERM))
    assert told.startswith("stopped by SIGTERM after epoch 1, window 2 of 5; saved in run, give")
    assert ("experiments.generate --workdir=run" in told) == ("vary" not in more)
