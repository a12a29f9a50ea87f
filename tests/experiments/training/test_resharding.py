"""A state resumes bit for bit with other chunks and padding than it was saved with."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.training.ensemble_run import EnsembleRun, new_ensemble, with_seeds
from experiments.training.resumption import host_buffers
from experiments.training.single_run import SingleRun
from zaremba_jax.checkpoint import restore, save
from zaremba_jax.config import override
from zaremba_jax.data.corpus import make_corpus
from zaremba_jax.evaluate import text_nll
from zaremba_jax.parallel.members import init_chunks
from zaremba_jax.parallel.mesh import make_mesh
from zaremba_jax.presets import QUICK
from zaremba_jax.train import init_train_state

CONFIG = override(QUICK, layers=1, hidden_size=3, batch_size=3)
NOTHING = cast(Any, None)


def ensemble_of(count, at_once):
    """Three members in chunks that have `count` members in total, padding included."""
    mesh, configs = make_mesh(jax.devices()[:1]), with_seeds(CONFIG, 3)
    states = init_chunks(CONFIG, 7, range(count), at_once, mesh)
    return EnsembleRun(configs, NOTHING, NOTHING, states, mesh, Console())


def run_of(streams):
    """One model whose batch is padded to `streams`; no number of its recurrent state is zero."""
    state = init_train_state(CONFIG, 7)
    rnn_state = jax.tree.map(
        lambda x: 1 + jnp.arange(streams * 3, dtype=x.dtype).reshape(streams, 3), state.rnn_state
    )
    return SingleRun(CONFIG, NOTHING, NOTHING, dataclasses.replace(state, rnn_state=rnn_state))


def through_a_checkpoint(run, other, folder):
    """The state of a run, saved and restored in the layout of another run."""
    assert run.layout != other.layout
    save(folder, 1, run.state, {"layout": run.layout})
    restored = restore(folder, lambda record: host_buffers(CONFIG, 7, record["layout"]))
    assert restored is not None
    return other.cut(restored.state)


def numbers(states):
    """Leaves of all members, concatenated."""
    plain = [dataclasses.replace(state, key=jax.random.key_data(state.key)) for state in states]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *plain)


def test_members_saved_one_by_one_go_on_in_chunks_with_padding_and_back(tmp_path):
    single, paired = ensemble_of(3, at_once=1), ensemble_of(4, at_once=2)
    pairs = through_a_checkpoint(single, paired, tmp_path / "there")
    assert [len(state.step) for state in pairs] == [2, 2]
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[:3], y), numbers(pairs), numbers(single.state)
    )
    paired.state = pairs
    singles = through_a_checkpoint(paired, single, tmp_path / "back")
    assert [len(state.step) for state in singles] == [1, 1, 1]
    jax.tree.map(np.testing.assert_array_equal, numbers(singles), numbers(single.state))


def test_streams_that_pad_the_batch_are_dropped_and_new_ones_are_zero(tmp_path):
    narrow, wide = run_of(3), run_of(6)
    for run, other in ((narrow, wide), (wide, narrow)):
        state = through_a_checkpoint(run, other, tmp_path / str(run.layout["streams"]))
        hidden, saved = state.rnn_state[0].hidden, run.state.rnn_state[0].hidden
        assert hidden.shape == other.state.rnn_state[0].hidden.shape
        np.testing.assert_array_equal(hidden[:3], saved[:3])
        assert not hidden[3:].any()
        np.testing.assert_array_equal(
            jax.random.key_data(state.key), jax.random.key_data(run.state.key)
        )
        jax.tree.map(np.testing.assert_array_equal, state.params, run.state.params)


def test_ensemble_is_evaluated_by_the_expectation_of_zoneout_and_in_its_precision():
    corpus = make_corpus("ours", list("abcaba") * 9, list("abc") * 4, list("cba") * 6)
    sizes = {"layers": 1, "hidden_size": 4, "batch_size": 2, "unroll": 5, "init_scale": 0.9}
    noise = {"zoneout_hidden": 0.3, "zoneout_cell": 0.5}
    config = override(QUICK, **sizes, **noise, precision="bfloat16")
    mesh = make_mesh(jax.devices()[:1])
    run = new_ensemble(with_seeds(config, 2), corpus, 1, mesh, Console())
    for member, nll in enumerate(run.nll(corpus.test)):
        expected = text_nll(run.model(member), corpus.test)
        np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_keys_stay_of_their_kind_whatever_jaxs_default_is(tmp_path):
    with jax.default_prng_impl("rbg"):
        test_streams_that_pad_the_batch_are_dropped_and_new_ones_are_zero(tmp_path)
