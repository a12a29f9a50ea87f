import io
import math
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from rich.console import Console

from experiments.training import opening
from zaremba_jax.config import override
from zaremba_jax.data.corpus import make_corpus
from zaremba_jax.parallel.members import memory_needed
from zaremba_jax.presets import QUICK


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


def test_memory_is_that_of_the_text_and_of_the_models_on_a_device():
    config, file = override(QUICK, hidden_size=50), io.StringIO()
    run: Any = SimpleNamespace(
        config=config,
        all_configs=[config] * 3,
        corpus=make_corpus("x", ["a", "b", "a"], ["a", "b"], ["a", "b"]),
        windows=Resident([0]),
        models_on_device=(3, 2),
    )
    opening.print_run(run, Console(file=file))
    needed = math.ceil((5 * 2**20 + memory_needed(config, 2, 3, 2)) / 2**20)
    assert "model: 3 models of " in file.getvalue()
    assert f"trains in about {needed} MiB of " in file.getvalue()
