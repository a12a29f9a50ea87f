"""The program that exports models to other formats and imports them from torch's."""

import dataclasses
import json

import jax
import jax.export
import numpy as np
from invoke import assert_refused, content, run_elsewhere
from model_examples import make, put_model
from safetensors.numpy import load, save

from experiments.cli.trained_models import load_models
from experiments.training.run_folder import Workdir
from zaremba_jax.config import override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import text_nll
from zaremba_jax.interop.torch_weights import model_to_torch

WORDS = Vocabulary(("the", "<eos>", "cat"))
MODEL = make(vocabulary=WORDS, hidden_size=2)


def test_import_takes_the_words_that_mean_end_and_unknown_and_says_what_is_missing(tmp_path):
    (tmp_path / "torch.safetensors").write_bytes(save(model_to_torch(MODEL.params)))
    (tmp_path / "words.json").write_text(json.dumps(["the", "</s>", "[unk]"]))
    (tmp_path / "characters.json").write_text(json.dumps(["a", "</s>", "<pad>"]))
    (tmp_path / "text").write_text("the cat\nthe\n")
    (tmp_path / "aa").write_text("a\naa\n")
    flags = ["--from_torch=torch.safetensors", "--vocabulary=words.json", "--to=model"]
    both = ["--line_end=</s>", "--unknown=[unk]"]
    named, bare, characters, *refused = run_elsewhere(
        "experiments.export",
        [*flags, *both, "--out=named.safetensors"],
        [*flags, "--unknown=[unk]", "--out=bare.safetensors"],
        [
            *("--from_torch=torch.safetensors", "--vocabulary=characters.json", "--unit=char"),
            *("--line_end=</s>", "--to=model", "--out=characters.safetensors"),
        ],
        [*flags, "--line_end=<s>", "--out=x"],
        ["--workdir=named.safetensors", "--line_end=</s>", "--out=x"],
        cwd=tmp_path,
    )
    assert named == (0, "file written: named.safetensors\n", "")
    assert "the model has no <eos>: the ends of lines are left out" in bare.out
    assert bare.out.endswith("give --line_end\n")
    assert "the model has no <unk>: it reads no text with a character that is" in characters.out
    assert characters.out.endswith("not single characters, and never read: <pad>\n")
    assert_refused(refused[0], "<s>: is not in the vocabulary; name the word for <eos>")
    assert_refused(refused[1], "--line_end: only for --from_torch; leave it out")
    with_ends, without, of_characters = run_elsewhere(
        "experiments.score",
        *([f"--workdir={name}.safetensors", "text"] for name in ("named", "bare")),
        ["--workdir=characters.safetensors", "aa"],
        cwd=tmp_path,
    )
    assert "4 tokens in 2 lines" in with_ends.out
    assert "the ends of lines are left out" not in with_ends.out
    assert "4 tokens in 2 lines" in of_characters.out
    assert "2 tokens in 2 lines" in without.out
    assert "the ends of lines are left out: the model has no word for them" in without.out


def test_model_goes_into_every_form_and_comes_back_and_mistakes_are_refused(tmp_path):
    put_model(Workdir(tmp_path / "run").model, MODEL)
    figures = {"valid_perplexity": 40.25, "test_perplexity": 38.5}
    Workdir(tmp_path / "run").summary.write_text(json.dumps(figures))
    for seed in (0, 1):
        put_model(Workdir(tmp_path / "ensemble").member(seed), MODEL)
    (tmp_path / "words.json").write_text(json.dumps(WORDS.words))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.safetensors").write_bytes(save({"x": np.zeros(1)}))
    import_flags = ["--from_torch=torch.safetensors", "--vocabulary=words.json", "--to=model"]
    outcomes = run_elsewhere(
        "experiments.export",
        ["--workdir=run", "--out=folder"],
        ["--workdir=run", "--out=folder"],
        ["--workdir=folder", "--to=torch", "--out=torch.safetensors"],
        [*import_flags, "--out=new/model.safetensors"],
        ["--workdir=new/model.safetensors", "--to=stablehlo", "--out=scoring.stablehlo"],
        ["--workdir=folder", "--out=again"],
        ["--workdir=again/model.safetensors", "--out=thrice"],
        cwd=tmp_path,
    )
    assert [(outcome.status, outcome.err) for outcome in outcomes] == [(0, "")] * 7
    assert outcomes[0].out == "folder written: folder\n"
    for folder in ("folder", "again", "thrice"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "| validation | 40.2 |\n| test | 38.5 |" in card
    arrays = load((tmp_path / "torch.safetensors").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, arrays, model_to_torch(MODEL.params))
    for path in ("folder", "new/model.safetensors"):
        (model,) = load_models([str(tmp_path / path)])
        assert model.vocabulary == WORDS
        jax.tree.map(np.testing.assert_array_equal, model.params, MODEL.params)
    score = jax.export.deserialize(bytearray((tmp_path / "scoring.stablehlo").read_bytes())).call
    ids, state = np.array([[1], [0], [2], [1]], np.int32), ((np.zeros((1, 2), np.float32),) * 2,)
    nats, _ = score(ids[:-1], ids[1:], state)
    np.testing.assert_allclose(nats[:, 0], text_nll(MODEL, ids[:, 0]), rtol=1e-5)
    zoneout = override(MODEL.config, zoneout_hidden=0.5)
    put_model(Workdir(tmp_path / "zoneout").model, dataclasses.replace(MODEL, config=zoneout))
    (tmp_path / "hub").mkdir()  # another program's, with files of the same names
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "gpt2"}')
    for name in ("vocab.json", "model.safetensors"):
        (tmp_path / "hub" / name).write_text("theirs")
    flat = {name: np.zeros(3, np.float32) for name in model_to_torch(MODEL.params)}
    (tmp_path / "flat.safetensors").write_bytes(save(flat))
    before = content(tmp_path)
    refused = {
        "--out=run: exists; name a new file": ["--workdir=run", "--to=torch", "--out=run"],
        "--out=run/model.safetensors: exists; name a new file": [
            *("--workdir=run", "--to=torch", "--out=run/model.safetensors")
        ],
        "--out=words.json: exists; name a new folder": ["--workdir=run", "--out=words.json"],
        "--to=torch: torch's layers have no zoneout": [
            *("--workdir=zoneout", "--to=torch", "--out=made/x")
        ],
        "--from_torch=flat.safetensors: ": [
            *("--from_torch=flat.safetensors", "--vocabulary=words.json", "--out=x")
        ],
        "--out=run: holds something other than an export": ["--workdir=run", "--out=run"],
        "--out=hub: holds something other than an export": ["--workdir=run", "--out=hub"],
        "error: bad.json: is not a vocabulary": [
            *("--from_torch=torch.safetensors", "--vocabulary=bad.json", "--out=x")
        ],
        "--workdir, --from_torch: give one of the two": ["--out=x"],
        "--workdir=ensemble: has 2 models; name one file": ["--workdir=ensemble", "--out=x"],
        "--from_torch: has no words of its own": ["--from_torch=bad.safetensors", "--out=x"],
        "--from_torch=bad.safetensors: encoder.weight": [
            *("--from_torch=bad.safetensors", "--vocabulary=words.json", "--out=x")
        ],
        "--out: names no folder; give the one to write": ["--workdir=run"],
        "--out: names no file; give the one to write": ["--workdir=run", "--to=torch", "--out="],
    }
    results = run_elsewhere("experiments.export", *refused.values(), cwd=tmp_path)
    for reason, outcome in zip(refused, results, strict=True):
        assert_refused(outcome, reason)
    assert content(tmp_path) == before
