"""Counts: whole numbers, Python's or NumPy's, wherever one is taken."""

from typing import Any

import jax
import numpy as np
import pytest

from zaremba_jax.data.encoding import Encoding
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.windows import TextWindows, streams
from zaremba_jax.limits import whole_number
from zaremba_jax.parallel.members import chunk_sizes
from zaremba_jax.parallel.mesh import make_mesh
from zaremba_jax.parallel.streams import streams_of_device

IDS = np.arange(99, dtype=np.uint8)
TAKERS: dict[str, Any] = {
    "batch_size": lambda count: TextWindows(IDS, count, 2),
    "unroll": lambda count: TextWindows(IDS, 2, count),
    "batch_size of streams": lambda count: streams(IDS, count),
    "vocab_size": lambda count: Vocabulary.from_tokens(["a", "a", "b"], vocab_size=count),
    "min_count": lambda count: Vocabulary.from_tokens(["a", "a", "b"], min_count=count),
    "vocab_size of an encoding": lambda count: Encoding(vocab_size=count),
    "min_count of an encoding": lambda count: Encoding(min_count=count),
    "train_tokens": lambda count: toy_corpus(train_tokens=count),
    "at_once": lambda count: chunk_sizes(5, count, make_mesh(jax.devices()[:1])),
    "devices": lambda count: streams_of_device(20, count),
}


@pytest.mark.parametrize("name", TAKERS)
@pytest.mark.parametrize("count", [2.5, True, "2"])
def test_what_is_no_whole_number_is_refused(name, count):
    reason = f"{name.partition(' of ')[0]}={count!r}: must be a whole number"
    with pytest.raises(ValueError, match=f"^{reason}$"):
        TAKERS[name](count)


@pytest.mark.parametrize("name", [name for name in TAKERS if name != "train_tokens"])
def test_narrow_number_of_numpy_is_taken_as_python_s(name):
    of_numpy, of_python = TAKERS[name](np.uint8(2)), TAKERS[name](2)
    if isinstance(of_python, TextWindows):
        of_numpy, of_python = of_numpy[:], of_python[:]
    np.testing.assert_equal(of_numpy, of_python)


def test_whole_number_is_one_of_python_s_within_its_limits():
    of_numpy: Any = np.uint8(255)
    assert type(whole_number("n", of_numpy, at_least=1)) is int
    with pytest.raises(ValueError, match=r"^n=0: must be at least 1$"):
        whole_number("n", 0, at_least=1)
