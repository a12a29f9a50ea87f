"""Strict settings for every test: shapes and types checked, nothing promoted silently."""

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Records live in array_types, and trees of them hold other things than arrays at times.
install_import_hook(
    [
        f"zaremba_jax.{module}"
        for module in (
            "precision",
            "cells",
            "kernels.lstm",
            "kernels.any_cell",
            "rnn",
            "softmax",
            "model",
            "regularizers",
            "optimizer",
            "train",
            "evaluate",
            "ensemble",
        )
    ],
    "beartype.beartype",
)

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("repeatable")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def float64():
    """Double precision, for comparisons to the last digits."""
    with jax.enable_x64(True):
        yield
