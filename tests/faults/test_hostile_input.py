"""Flags, texts and model files of any content are used, or refused in one line."""

import random
import re
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from invoke import FLAGS, assert_refused, run
from model_examples import make

from experiments.cli import opened_runs
from experiments.endings.errors import ProgramEndError
from zaremba_jax.config import settings as all_settings
from zaremba_jax.data.encoding import read_corpus
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_file import load_model, save_model

many = pytest.mark.parametrize(
    "examples", [10, pytest.param(400, marks=pytest.mark.faults)], ids=["few", "many"]
)
OTHERS = ["chunk", "checkpoint_minutes", "data_parallel", "mc_samples", "config", "workdir"]
VALUES = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.sampled_from(["", "nan", "-inf", "1e999", "0x10", "1_000", "٣", "true", "None", "../x/y"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


class ReachedTrainingError(ProgramEndError):
    """Stands for a training that could begin."""

    status = 77


@many
def test_any_value_of_a_flag_can_be_trained_with_or_is_refused(folder, examples, counted):
    names = st.sampled_from([*sorted(all_settings()), *OTHERS])

    @settings(max_examples=examples)
    @given(st.lists(st.tuples(names, VALUES), min_size=1, max_size=2))
    def check(changes):
        flags = [f"--{name}={value}" for name, value in changes]
        with mock.patch.object(opened_runs, "new_run", side_effect=ReachedTrainingError("")):
            outcome = run(*FLAGS, *flags)
        if outcome.status != ReachedTrainingError.status:
            assert_refused(outcome)
        counted("values of flags")

    check()


@many
def test_any_bytes_are_read_as_words_or_refused(tmp_path, examples, counted):
    texts = st.one_of(
        st.binary(max_size=60), st.text("ab \n\t\r\u00a0é\ufeff", max_size=60).map(str.encode)
    )

    @settings(max_examples=examples)
    @given(texts)
    @example(b"a <eos>\n")
    def check(text):
        path = tmp_path / "text"
        path.write_bytes(text)
        try:
            corpus = read_corpus("any", path, path, path, cache_dir=tmp_path / "cache")
        except InputError as error:
            told = str(error)
        else:
            told = ""
            lines = re.split("\r\n|\r|\n", text.decode("utf-8-sig"))
            lines = [line.split() for line in (lines if lines[-1] else lines[:-1])]
            tokens = [token for line in lines for token in (*line, "<eos>")]
            assert [corpus.vocabulary.words[index] for index in corpus.train] == tokens
        assert "\n" not in told
        counted("texts")

    check()


@many
def test_damaged_model_is_refused_in_one_line_or_is_the_same(tmp_path, examples, counted):
    path, source = tmp_path / "model.safetensors", random.Random(0)
    save_model(path, make())
    written, expected = path.read_bytes(), jax.tree.leaves(make().params)
    for _ in range(examples):
        path.write_bytes(mutated(written, source))
        try:
            params = jax.tree.leaves(load_model(path).params)
        except InputError as error:
            told = str(error)
        else:
            told = ""
            for actual, wanted in zip(params, expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)
        assert "\n" not in told
        counted("model files")


def mutated(data: bytes, source: random.Random) -> bytes:
    """The data with a few bytes changed, inserted, removed, repeated, or the rest cut off."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at, length = source.randrange(len(changed)), source.randint(1, 8)
        changed[at : at + length] = source.choice(
            [
                bytes([changed[at] ^ 1 << source.randrange(8)]) + changed[at + 1 : at + length],
                source.randbytes(length),
                b"",
                changed[at : at + length] * 2,
                source.choice([b"{", b"]", b"null", b"-1", b"1e999", b'"', b"\xff"]),
            ]
        )
    return bytes(changed[: source.choice([None, None, None, source.randrange(len(changed))])])
