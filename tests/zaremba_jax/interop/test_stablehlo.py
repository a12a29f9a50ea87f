"""The scoring function outside this package."""

import functools
import subprocess
import sys

import jax
import model_examples
import numpy as np
import pytest
from jax import export

from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import text_nll
from zaremba_jax.interop.stablehlo import PLATFORMS, portable_scoring

WORDS = Vocabulary(tuple("abcde"))
make = functools.partial(model_examples.make, vocabulary=WORDS, layers=2)
IDS = np.random.default_rng(0).integers(0, 5, 12).astype(np.int32)
# A stranger's program: two texts side by side, in two windows of different lengths.
STRANGER = """
import sys
import jax, numpy as np
assert not [name for name in sys.modules if name.startswith(("flax", "zaremba_jax"))]
score = jax.export.deserialize(bytearray(open("scoring.stablehlo", "rb").read())).call
ids = np.load("ids.npy")
state = tuple((np.zeros((2, 3), np.float32),) * 2 for _ in range(2))
nats = []
for first, last in ((0, 7), (7, 11)):
    window = np.stack([ids, ids[::-1]], axis=1)[first : last + 1]
    part, state = score(window[:-1], window[1:], state)
    nats.append(part)
np.save("nats.npy", np.concatenate(nats))
"""


def test_function_runs_with_jax_and_numpy_alone_on_windows_of_any_size(tmp_path):
    model = make(softmax_tokens=2)
    (tmp_path / "scoring.stablehlo").write_bytes(portable_scoring(model))
    np.save(tmp_path / "ids.npy", IDS)
    code = "import jax.export\n" + STRANGER
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    nats = np.load(tmp_path / "nats.npy")
    for column, ids in enumerate((IDS, IDS[::-1])):
        np.testing.assert_allclose(nats[:, column], text_nll(model, ids), rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "gru", "precision": "bfloat16"},
        {"zoneout_cell": 0.5},
        {"kernel": "pallas"},
        {"tie_weights": True, "precision": "bfloat16"},
    ],
    ids=str,
)
def test_every_cell_precision_and_noise_goes_along_for_every_platform(changes):
    model = make(**changes)
    exported = export.deserialize(bytearray(portable_scoring(model)))
    assert exported.platforms == PLATFORMS
    parts = 1 if model.config.model.cell == "gru" else 2
    state = tuple((np.zeros((1, 3), np.float32),) * parts for _ in range(2))
    nats, new_state = exported.call(IDS[:-1, None], IDS[1:, None], state)
    np.testing.assert_allclose(nats[:, 0], text_nll(model, IDS), rtol=1e-5)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_missing_flatbuffers_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(InputError, match=r"pip install 'zaremba-jax\[stablehlo\]'$"):
        portable_scoring(make())
