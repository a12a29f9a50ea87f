"""What the first version left is read, and its runs end as they ended there.

Each archive in `first_version/` holds a run that a signal stopped in its second epoch, and
what that version left when it had trained the same run to its end, under the suite's settings.
"""

import zipfile
import zlib
from pathlib import Path

import invoke
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import CHUNK, MEMBERS, SINGLE, metrics, summary_of, untimed

from experiments import ensemble, ptb, sweep
from experiments.reports.records import read_record
from experiments.training.run_folder import Workdir
from zaremba_jax.interop.model_file import load_model

NOISE = ("--hidden_dropout=0.2", "--word_dropout=0.1", "--zoneout_cell=0.1", "--l2=1e-4")
COMMANDS = {
    "run": (ptb, (*SINGLE, *NOISE)),
    "ensemble": (ensemble, MEMBERS),
    "sweep": (sweep, (*SINGLE, "--vary=learning_rate=0.5,1")),
}
# Where arithmetic rounds as on the machine that made the archives, every bit is compared.
ROUNDED = 1761734090


def rounds_alike():
    """Whether products, exponentials and sums round as where the archives were made."""
    x = jnp.sin(jnp.arange(72, dtype=jnp.float32)).reshape(9, 8)
    y = jax.jit(lambda x: jax.nn.log_softmax(jnp.tanh(x @ x.T) @ jax.nn.sigmoid(x)))(x)
    return zlib.crc32(np.asarray(y).tobytes()) == ROUNDED


def figures(content):
    """All perplexities in a summary, in order."""
    if isinstance(content, list):
        return [figure for item in content for figure in figures(item)]
    if isinstance(content, dict):
        return [
            figure
            for name, value in content.items()
            for figure in ([value] if name.endswith("_perplexity") else figures(value))
        ]
    return []


def unpack(name, folder):
    with zipfile.ZipFile(Path(__file__).parent / f"first_version/{name}.zip") as archive:
        archive.extractall(folder)


def last_digit(actual, expected):
    """For figures that NumPy's float64 exponentials have part in, whose last digit varies."""
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def near(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


@pytest.fixture(params=COMMANDS)
def resumed(request, folder):
    """The folder with a run of the first version, `finished`, and the same resumed, `stopped`."""
    unpack(request.param, folder)
    program, flags = COMMANDS[request.param]
    assert len(metrics(folder / "stopped")) == 1
    flags = [flag for flag in flags if not flag.startswith("--keep")]  # there was none
    outcome = invoke.run(*flags, "--workdir=stopped", program=program)
    assert (outcome.status, outcome.err) == (0, "")
    assert f"resuming stopped after epoch 1, window {2 * CHUNK}" in outcome.out
    return folder


def test_run_of_the_first_version_goes_on_to_the_end_that_it_had_there(resumed):
    same, alike = (np.testing.assert_array_equal, last_digit) if rounds_alike() else (near, near)
    new, old = resumed / "stopped", resumed / "finished"
    models = sorted(path.relative_to(old) for path in old.rglob("*.safetensors"))
    assert models == sorted(path.relative_to(new) for path in new.rglob("*.safetensors"))
    assert models
    for path in models:
        mine, theirs = load_model(new / path), load_model(old / path)
        assert (mine.config, mine.vocabulary) == (theirs.config, theirs.vocabulary)
        jax.tree.map(same, mine.params, theirs.params)
    summaries = [summary_of(workdir) for workdir in (new, old)]
    assert summaries[1].keys() <= summaries[0].keys()
    assert len(figures(summaries[1])) >= 4
    new_figures, old_figures = (np.array(figures(summary), float) for summary in summaries)
    alike(new_figures, old_figures)
    lines = [untimed(metrics(workdir)) for workdir in (new, old)]
    assert lines[0][0] == lines[1][0]  # trained there
    if rates := lines[0][1].pop("learning_rates", None):
        lines[0][1]["learning_rate"] = np.mean(rates)  # as was written of a sweep
    assert lines[0][1].keys() == lines[1][1].keys()
    for name, value in lines[1][1].items():
        alike(lines[0][1][name], value)


@pytest.mark.parametrize(("name", "seeds"), [("run", {0}), ("ensemble", {0, 1, 2})])
def test_record_of_the_first_version_is_read(tmp_path, name, seeds):
    unpack(name, tmp_path)
    finished = read_record(Workdir(tmp_path / "finished"))
    assert finished.seeds == finished.perplexities.keys() == seeds
    assert [len(curve) for curve in finished.curves] == [2] * len(seeds)
    stopped = read_record(Workdir(tmp_path / "stopped"))
    assert (stopped.model, stopped.summary) == (finished.model, {})
