import io
import math
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments.training import opening
from zaremba_jax.config import override
from zaremba_jax.data.corpus import Corpus, make_corpus
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.parallel.members import memory_needed
from zaremba_jax.presets import LARGE, QUICK


@pytest.fixture
def told(monkeypatch):
    """A function that returns what is said of the device, with some plugins installed."""
    assert jax.default_backend() == "cpu"

    def tell(*plugins):
        monkeypatch.setattr(opening, "accelerator_plugins", lambda: list(plugins))
        file = io.StringIO()
        opening.print_devices(Console(file=file, width=80), jax.device_count())
        return file.getvalue()

    return tell


def test_cpu_is_a_loud_warning_where_an_accelerator_could_be_used(told, monkeypatch):
    assert told().count("\n") == 1
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    loud = "WARNING: xla_cuda12 is installed, but the CPU is used: JAX_PLATFORMS=cpu says so"
    assert loud in told("xla_cuda12")
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "the CPU is used: jax finds no such device" in told("xla_cuda12", "libtpu")


def test_devices_that_stay_unused_are_told_apart(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for used, told in ((8, "device: 8 × CPU, "), (1, "device: CPU, ")):
        file = io.StringIO()
        opening.print_devices(Console(file=file, width=80), used)
        assert file.getvalue().startswith(told)
        assert file.getvalue().endswith(" (of 8)\n") == (used == 1)


def test_share_of_unknown_words_is_of_the_training_text():
    texts = (["a", "<unk>", "a", "b"], ["a", "<unk>"], ["a", "b"])
    assert opening.unknown_share(make_corpus("x", *texts)) == 0.25


class Resident(list):
    resident_bytes = 5 * 2**20


def said_of(config, corpus, windows, models=1, on_device=(1, 1), width=80):
    """The lines about a run, as a file of so many columns gets them."""
    file = io.StringIO()
    run: Any = SimpleNamespace(
        config=config,
        all_configs=[config] * models,
        corpus=corpus,
        windows=Resident(windows),
        models_on_device=on_device,
    )
    opening.print_run(run, Console(file=file, width=width))
    return file.getvalue()


def test_memory_is_that_of_the_text_and_of_the_models_on_a_device():
    config = override(QUICK, hidden_size=50)
    corpus = make_corpus("x", ["a", "b", "a"], ["a", "b"], ["a", "b"])
    said = said_of(config, corpus, [0], models=3, on_device=(3, 2))
    needed = math.ceil((5 * 2**20 + memory_needed(config, 2, 3, 2)) / 2**20)
    assert "\nmodel: 3 models of " in said
    assert f"\ntraining: 6 epochs × 1 windows; the arrays take about {needed} MiB of " in said


def test_lines_about_the_largest_run_of_the_paper_fit_80_columns():
    vocabulary = Vocabulary(("<unk>", *map(str, range(9_999))))
    text = np.zeros(929_589, np.int32)
    corpus = Corpus("Penn Treebank", vocabulary, text, text[:2], text[:2])
    lines = said_of(LARGE, corpus, range(1_327), models=38).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["text", "model", "training"]
    assert max(map(len, lines)) <= 80
    narrow = said_of(LARGE, corpus, range(1_327), models=38, width=40)
    assert narrow.splitlines() == lines  # whole, whatever a file is taken to be
