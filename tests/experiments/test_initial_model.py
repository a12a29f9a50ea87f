"""Runs that go on from a trained model, and runs with a given word list."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.flags import FLAGS
from invoke import CONFIG, SINGLE, TEXT, WORDS, assert_refused, assert_same_run, run, run_elsewhere
from model_examples import put_model

from experiments.cli import initial_model
from experiments.cli.training_flags import configure
from experiments.training import single_run
from experiments.training.run_folder import Workdir
from zaremba_jax.config import override
from zaremba_jax.data.units import EOS, UNK
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.model import Model, init_params

KNOWN = Vocabulary((*WORDS[:-1], UNK, EOS))  # the text's last word is new to the model
GO_ON = (*SINGLE, "--init_from=base", "--epochs=1")


def save(path, vocabulary=KNOWN, **changes):
    config = override(CONFIG, **changes)
    params = init_params(config.model, len(vocabulary), key=jax.random.key(7))
    put_model(Path(path), Model(params, config, vocabulary))


@pytest.fixture
def base(folder):
    save("base/model.safetensors")
    return folder


def test_run_goes_on_from_a_model_and_resumes_to_the_bit(base, monkeypatch, ctrl_c_after):
    given = load_model("base/model.safetensors")
    starts, init = [], single_run.init_train_state

    def kept(*args, **kwargs):
        state = init(*args, **kwargs)
        starts.append(jax.tree.map(np.array, state.params))
        return state

    monkeypatch.setattr(single_run, "init_train_state", kept)
    assert run(*GO_ON, "--workdir=straight").status == 0
    jax.tree.map(np.testing.assert_array_equal, starts[0], given.params)
    assert load_model("straight/model.safetensors").vocabulary == KNOWN
    ctrl_c_after(1)
    assert run(*GO_ON, "--workdir=run").status == 128 + signal.SIGINT
    same_content = "--init_from=moved/its.safetensors"
    shutil.move("base", "moved")
    shutil.move("moved/model.safetensors", "moved/its.safetensors")
    assert run(*GO_ON, same_content, "--workdir=run").status == 0
    assert_same_run(Path("run"), Path("straight"))
    save("moved/its.safetensors", init_scale=0.2)
    assert_refused(run(*GO_ON, same_content, "--workdir=run"), "init_from (", "there", "here")


def test_model_that_changes_while_a_run_begins_is_refused(base, monkeypatch):
    load = initial_model.load

    def loaded(source):
        model = load(source)
        save("base/model.safetensors", init_scale=0.2)
        return model

    monkeypatch.setattr(initial_model, "load", loaded)
    assert_refused(run(*GO_ON, "--workdir=run"), "--init_from=base: changed while it was read;")
    assert not Path("run").exists()


def test_default_folder_is_named_after_model_and_word_list(base):
    Path("words.txt").write_text("a\n<unk>\n<eos>\n")
    save("runs/x/members/seed-3.safetensors")
    names = {
        "quick-corpus=files-init_from=base": ("--init_from=base/model.safetensors",),
        "quick-corpus=files-init_from=seed-3": ("--init_from=runs/x/members/seed-3.safetensors",),
        "quick-corpus=files-vocabulary=words.txt": ("--vocabulary=words.txt",),
    }
    for name, flags in names.items():
        FLAGS(["ptb", *TEXT, *flags])
        assert configure()[1].path == Path("runs") / name
        FLAGS.unparse_flags()


def test_model_that_does_not_fit_is_refused(base):
    save("wide.safetensors", hidden_size=9, tie_weights=True)
    save("characters.safetensors", Vocabulary(("a", "\n"), "char"), unit="char")
    save("closed.safetensors", Vocabulary(("a", EOS)))
    save("endless.safetensors", Vocabulary(("a", UNK)))
    save("many/members/seed-0.safetensors")
    save("many/members/seed-1.safetensors")
    Path("words.txt").write_text("a\n<unk>\n<eos>\n")
    toy = [flag for flag in SINGLE if "_file" not in flag]
    refused = {
        (*SINGLE, "--init_from=wide.safetensors"): (
            "--init_from=wide.safetensors: its model has another shape: hidden_size (9 there, 8"
            " here), tie_weights (True there, False here); give --hidden_size=9 --tie_weights=True"
        ),
        (*SINGLE, "--init_from=characters.safetensors"): (
            "is of characters, but the text is read by words; give unit=char, or another text"
        ),
        (*SINGLE, "--init_from=closed.safetensors"): (
            "is not in the vocabulary, which has no <unk>; replace it in the text, or take a"
        ),
        (*SINGLE, "--init_from=endless.safetensors"): "has no <eos>, which each line end becomes",
        (*SINGLE, "--init_from=many"): "--init_from=many: has 2 models; name one file",
        (*SINGLE, "--init_from=absent"): "absent: holds no model",
        (*GO_ON, "--min_count=2"): "--min_count: --init_from brings the vocabulary of its model",
        (*GO_ON, "--vocabulary=words.txt"): "--vocabulary: --init_from brings the vocabulary",
        (*toy, "--init_from=base"): "--corpus=toy: has another vocabulary than base; name a text",
        (*toy, "--vocabulary=words.txt"): "--vocabulary=words.txt: the built-in corpus has its own",
        (*SINGLE, "--vocabulary=words.txt", "--vocab_size=9"): (
            "--vocab_size=9: --vocabulary lists the words to keep; leave one of the two out"
        ),
        (*SINGLE, "--vocabulary=absent"): "absent: no such file",
    }
    for flags, reason in refused.items():
        assert_refused(run(*flags), reason)
    assert not Path("runs").exists()


def test_word_list_may_come_from_a_pipe_which_is_read_once(folder):
    pipe, end = os.pipe()
    os.write(end, "\n".join(KNOWN.words).encode())
    os.close(end)
    outcome = run(*SINGLE, "--epochs=1", f"--vocabulary=/dev/fd/{pipe}", "--workdir=run")
    os.close(pipe)
    assert (outcome.status, outcome.err) == (0, "")
    assert load_model("run/model.safetensors").vocabulary == KNOWN


@pytest.mark.slow
def test_members_and_sweeps_go_on_too_and_a_list_is_averaged_with(base):
    Path("words.json").write_text(json.dumps(KNOWN.words))
    (swept,) = run_elsewhere(
        "experiments.sweep",
        [*GO_ON, "--vary=learning_rate=1e-30,1e-29", "--workdir=swept"],
        cwd=base,
    )
    assert (swept.status, swept.err) == (0, "")
    (member,) = Workdir(base / "swept").members.iterdir()
    given, last = load_model(base / "base/model.safetensors"), load_model(member)
    jax.tree.map(np.testing.assert_array_equal, given.params, last.params)
    assert run(*SINGLE, "--epochs=1", "--vocabulary=words.json", "--workdir=one").status == 0
    assert load_model("one/model.safetensors").vocabulary == KNOWN
    (averaged,) = run_elsewhere("experiments.ensemble", ["--from=one", *TEXT], cwd=base)
    assert (averaged.status, averaged.err) == (0, "")
