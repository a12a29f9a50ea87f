import io

import jax
import pytest
from rich.console import Console

from experiments.training import opening
from zaremba_jax.data.corpus import make_corpus


@pytest.fixture
def told(monkeypatch):
    """A function that returns what is said of the device, with some plugins installed."""
    assert jax.default_backend() == "cpu"

    def tell(*plugins):
        monkeypatch.setattr(opening, "accelerator_plugins", lambda: list(plugins))
        file = io.StringIO()
        opening.print_device(Console(file=file, width=80))
        return file.getvalue()

    return tell


def test_cpu_is_a_loud_warning_where_an_accelerator_could_be_used(told, monkeypatch):
    assert told().count("\n") == 1
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    loud = "WARNING: xla_cuda12 is installed, but the CPU is used: JAX_PLATFORMS=cpu says so"
    assert loud in told("xla_cuda12")
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "the CPU is used: jax finds no such device" in told("xla_cuda12", "libtpu")


def test_share_of_unknown_words_is_of_the_training_text():
    texts = (["a", "<unk>", "a", "b"], ["a", "<unk>"], ["a", "b"])
    assert opening.unknown_share(make_corpus("x", *texts)) == 0.25
