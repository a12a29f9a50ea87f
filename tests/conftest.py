"""Strict settings for every test: shapes and types checked, nothing promoted silently."""

import fcntl
import gc
import os
import signal
import tempfile

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Modules that assert for tests, so that what they find different is shown.
pytest.register_assert_rewrite("contender_examples", "faults.results", "flax_stack", "invoke")

# array_types is left out: trees of its records sometimes hold leaves other than arrays.
CHECKED = (
    "ops",
    "cells",
    "kernels",
    "rnn",
    "model",
    "inference",
    "interop.flax_sequences",
    "interop.flax_weights",
    "interop.torch_weights",
    "interop.stablehlo",
    "regularizers",
    "optimizer",
    "train",
    "evaluate",
    "ensemble",
)
# Not for mutmut, in whose modules every function stands a hundred times.
if "MUTANT_UNDER_TEST" not in os.environ:
    install_import_hook([f"zaremba_jax.{module}" for module in CHECKED], "beartype.beartype")


def pytest_configure(config):
    """Keeps out of the user's cache, stays on the CPU, and turns off most compiler optimizations.

    Programs that tests start inherit all of it. Tests that are slow or inspect optimized programs
    are selected by their markers and keep the optimizations. Most of the testing time is
    compilation, and jaxlib before 0.11 compiles for a CPU two to three times as fast without fusion
    emitters. So what one process has compiled, all others of the session take from a folder, except
    where compilers are tested.
    """
    cache = tempfile.TemporaryDirectory(prefix="zaremba-jax-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = cache.name
    # A shell starts what it puts into the background with Ctrl-C ignored, and nohup ignores SIGHUP.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    set_for_all("jax_platforms", os.environ["JAX_PLATFORMS"])
    if config.option.markexpr != "compilers":
        share_compiled(f"{cache.name}/compiled")
    if config.option.markexpr not in ("slow", "compilers"):
        set_for_all("jax_disable_most_optimizations", True)
        set_for_all("jax_traceback_in_locations_limit", 0)
        if jax.__version_info__ < (0, 11):
            os.environ["XLA_FLAGS"] = " ".join(
                (
                    "--xla_cpu_use_fusion_emitters=false",
                    "--xla_cpu_parallel_codegen_split_count=1",
                    os.environ.get("XLA_FLAGS", ""),
                )
            )


def set_for_all(name, value):
    """Gives a setting of jax a value in this process, and in those that it starts."""
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)


def share_compiled(folder):
    """Has this process and those that it starts keep what they compile, for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # its starter has said where
    set_for_all("jax_compilation_cache_dir", folder)
    set_for_all("jax_persistent_cache_min_compile_time_secs", 0)
    set_for_all("jax_persistent_cache_min_entry_size_bytes", -1)
    # Of a file that another process is writing, or that a test has the system refuse.
    os.environ["PYTHONWARNINGS"] = ",".join(
        f"ignore:Error {doing} persistent compilation cache entry"
        for doing in ("reading", "writing")
    )


def pytest_collection_finish():
    """Spares the collector of garbage all that was imported, which it would search again."""
    gc.freeze()


settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def float64():
    """Double precision, for comparisons to the last digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def plain_terminal():
    """Has rich print as it does without these variables, by which it changes width and colours."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("COLUMNS", "FORCE_COLOR", "TERM", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, holding the three texts."""
    from invoke import write_texts  # it imports modules that the hook above must see first

    write_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_locks(monkeypatch):
    """Has every file system refuse a lock."""

    def refuse(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(fcntl, "flock", refuse)
