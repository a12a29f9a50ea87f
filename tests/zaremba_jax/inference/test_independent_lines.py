import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_examples import model_of

from zaremba_jax.config import override
from zaremba_jax.evaluate import text_nll
from zaremba_jax.inference import independent_lines
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.model import init_params
from zaremba_jax.presets import QUICK

CONFIG = override(QUICK, layers=1, hidden_size=3, init_scale=1.0, zoneout_cell=0.25)
MODEL = model_of(init_params(CONFIG.model, 5, key=jax.random.key(0)), CONFIG)
START = 2


@settings(max_examples=5)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=8), min_size=1, max_size=9))
def test_each_line_is_scored_as_if_there_were_no_other(texts):
    results = lines_nll(MODEL, [np.array(text) for text in texts], START)
    for text, nll in zip(texts, results, strict=True):
        alone = text_nll(MODEL, np.array([START, *text], np.int32))
        np.testing.assert_allclose(nll, alone, rtol=1e-5)


def test_more_lines_than_fit_at_once_are_read_in_turns(monkeypatch):
    monkeypatch.setattr(independent_lines, "TOKENS_PER_BATCH", 8)
    texts = [np.array([n % 5, 1, 4]) for n in range(5)]
    turns = lines_nll(MODEL, texts, START)
    monkeypatch.undo()
    for nll, expected in zip(turns, lines_nll(MODEL, texts, START), strict=True):
        np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_line_that_is_too_long_is_read_in_windows(monkeypatch):
    def read(predictor, inputs, *rest):
        sizes.append(inputs.size)
        return window_nll(predictor, inputs, *rest)

    sizes, window_nll = [], independent_lines.window_nll
    monkeypatch.setattr(independent_lines, "window_nll", read)
    monkeypatch.setattr(independent_lines, "TOKENS_PER_BATCH", 8)
    texts = [np.arange(size) % 5 for size in (3, 17, 8)]
    for text, nll in zip(texts, lines_nll(MODEL, texts, START), strict=True):
        alone = text_nll(MODEL, np.array([START, *text], np.int32))
        np.testing.assert_allclose(nll, alone, rtol=1e-5)
    assert max(sizes) == 8


def test_no_lines_are_read():
    assert lines_nll(MODEL, [], START) == []


@pytest.mark.parametrize(("start", "line"), [(START, [0, 5]), (-1, [0, 4])])
def test_ids_of_another_vocabulary_are_refused(start, line):
    with pytest.raises(ValueError, match=r"^ids from .* for a vocabulary of 5: encode the text"):
        lines_nll(MODEL, [np.array([1]), np.array(line)], start)
