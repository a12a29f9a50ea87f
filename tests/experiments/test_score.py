"""The program that scores texts, and what it writes."""

import dataclasses
import json
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import SETTINGS, assert_refused, content, run, run_elsewhere, start_python, summary_of
from model_examples import TEXT, WORDS, make, put_model, two_models

from experiments.training.run_folder import Workdir
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.windows import windows
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.dynamic_evaluation import DynamicConfig, dynamic_nll, mean_squares
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.inference.neural_cache import CacheConfig, neural_cache_nll
from zaremba_jax.inference.text_scoring import read_text


def test_program_gives_a_text_the_perplexity_of_the_run_that_evaluated_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = b"a caf\xc3\xa9  by\r\n"
    texts = {"word": line[:-2], "char": line[:-2], "byte": bytes(range(256))}
    for unit, last in texts.items():
        (tmp_path / "train").write_bytes(line * 40)
        (tmp_path / unit).write_bytes(line * 5 + last)
        files = ["--train_file=train", f"--valid_file={unit}", f"--test_file={unit}"]
        settings = [f"--{name}={value}" for name, value in (SETTINGS | {"epochs": 1}).items()]
        outcome = run(*files, f"--unit={unit}", f"--workdir=run-{unit}", *settings)
        assert outcome.status == 0, outcome.err
    outcomes = run_elsewhere(
        "experiments.score", *([f"--workdir=run-{unit}", unit] for unit in texts), cwd=tmp_path
    )
    for unit, outcome in zip(texts, outcomes, strict=True):
        assert outcome.status == 0, outcome.err
        summary = summary_of(tmp_path / f"run-{unit}")
        assert f"{unit}: perplexity {summary['test_perplexity']:.2f}, " in outcome.out
        (nats,) = re.findall(r"([\d.]+) nats per token", outcome.out)
        assert float(nats) == pytest.approx(math.log(summary["test_perplexity"]), abs=1e-4)
        bits = f", {summary['test_bits']:.3f} bits per {'byte' if unit == 'byte' else 'character'}"
        assert (bits in outcome.out) == (unit != "word")
    assert summary_of(tmp_path / "run-byte")["unigram_perplexity"] is None


def perplexities(models, text):
    """Perplexities of the text, by the library, in each way that the program uses below."""

    def mixed(nll, **options):
        of_models = [nll(model, text.stream, **options) for model in models]
        return perplexity(mixture_nll(np.stack(of_models)))

    def scaled(model, ids):
        parts = jnp.asarray(windows(ids, 2, 5))
        return dynamic_nll(model, ids, rms, mean_squares(model, parts))

    def independent(model, ids):
        return np.concatenate(lines_nll(model, text.ids, WORDS.words.index("<eos>")))

    sgd = DynamicConfig(rule="sgd", rate=0.9, decay=0.002)
    rms = DynamicConfig(rule="rms", rate=0.1, decay=0.002)
    cache = CacheConfig(window=4, theta=2.0, weight=0.5)
    return (
        mixed(text_nll),
        mixed(neural_cache_nll, config=cache),
        mixed(dynamic_nll, config=sgd),
        mixed(scaled),
        mixed(independent),
    )


BOTH = ["--workdir=run0,run1", "text.tsv"]
WAYS = [
    [*BOTH, "--scores=scores.jsonl"],
    [*BOTH, "--cache_window=4", "--cache_theta=2", "--cache_weight=0.5"],
    [*BOTH, "--dynamic=sgd", "--dynamic_rate=0.9"],
    [*BOTH, "--dynamic=rms", "--train_file=text.tsv", "--dynamic_rate=0.1"],
    [*BOTH, "--independent", "--scores=lines.tsv", "--each=sentence"],
    ["--workdir=run0,run1", "-", "--independent", "--utterance_ids", "--scores=hypotheses.tsv"],
    [*BOTH, "--scores=tokens.jsonl", "--each=token"],
]
STANDARD_INPUT = f"""
import os
reader, writer = os.pipe()
os.write(writer, b"".join(b"id " + line for line in {TEXT.encode()!r}.splitlines(True)))
os.close(writer)
os.dup2(reader, 0)
"""
LONG = "x" * 250 + ".tsv"  # too long a name only for the file that it begins as
UNWRITTEN = f"{LONG}: file name too long; name another, or change what is there"
NO_FOLDER = "--scores=text.tsv/new/x.tsv: nothing can be written in "
MISTAKES = {
    "--scores=scores.txt: end the name in .jsonl or .tsv": [*BOTH, "--scores=scores.txt"],
    "--scores=train.tsv: exists and is not a file of scores; name another": [
        *(*BOTH, "--scores=train.tsv")
    ],
    "--scores=folder.tsv: is a folder; name a file": [*BOTH, "--scores=folder.tsv"],
    "--scores=run0/../text.tsv: would replace text.tsv, which is read; name another": [
        *(*BOTH, "--scores=run0/../text.tsv")
    ],
    "--scores=train.tsv: would replace text.tsv,train.tsv, which is read": [
        *(*BOTH, "--dynamic=rms", "--train_file=text.tsv,train.tsv", "--scores=train.tsv")
    ],
    UNWRITTEN: [*BOTH, f"--scores={LONG}"],
    NO_FOLDER: [*BOTH, "--scores=text.tsv/new/x.tsv"],
    "--dynamic=rms: give the training text with --train_file": [*BOTH, "--dynamic=rms"],
    "--train_file=text.tsv: 12 tokens are fewer than the 99 + 1 of a step; give more, or a": [
        *(*BOTH, "--dynamic=rms", "--train_file=text.tsv", "--dynamic_segment=99")
    ],
    "--dynamic, --cache_window: give one of the two": [
        *(*BOTH, "--dynamic=sgd", "--cache_window=4")
    ],
    "--independent: the model's text had no line ends; leave it out": [
        *("--workdir=one_line.safetensors", "text.tsv", "--independent")
    ],
    "--independent: lines have no past": [*BOTH, "--independent", "--cache_window=4"],
    "--dynamic_decay=2: 2.0 is not a number in the range [0, 1]": [
        *(*BOTH, "--dynamic=sgd", "--dynamic_decay=2")
    ],
    "--cache_theta: has no effect without --cache_window; give that too": [
        *(*BOTH, "--cache_theta=2")
    ],
    "--train_file: has no effect without --dynamic=rms; give that too": [
        *(*BOTH, "--dynamic=sgd", "--train_file=text.tsv")
    ],
    "--dynamic_epsilon: has no effect without --dynamic=rms; give that too": [
        *(*BOTH, "--dynamic=sgd", "--dynamic_epsilon=0.1")
    ],
    "broken.safetensors: embedding has numbers that are not finite; take a model": [
        *("--workdir=run0,broken.safetensors", "text.tsv", "--scores=broken.tsv")
    ],
    "text.tsv: a perplexity of inf, the scores are not finite; try a lower --dynamic_rate": [
        *(*BOTH, "--dynamic=sgd", "--dynamic_rate=1e30", "--scores=broken.tsv")
    ],
    "cache_theta=1e+39: must be finite in float32 and at least 0": [
        *(*BOTH, "--cache_window=4", "--cache_theta=1e39")
    ],
    "give FILE besides the flags; see --help": ["--workdir=run0"],
    "absent.txt: no such file": ["--workdir=run0", "absent.txt"],
    "absent: holds no model": ["--workdir=absent", "text.tsv"],
    "--workdir: names no model; give the folder of a run": ["text.tsv"],
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The folder, its models, and the outcomes of every way to score and of every mistake."""
    folder = tmp_path_factory.mktemp("scored")
    of_evaluation = {"zoneout_hidden": 0.4, "zoneout_cell": 0.2, "precision": "bfloat16"}
    models = [make(seed, **of_evaluation) for seed in (0, 1)]
    for seed, model in enumerate(models):
        put_model(Workdir(folder / f"run{seed}").model, model)
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), two_models()[0].params)
    with mock.patch("zaremba_jax.interop.model_file.checked_structure"):  # which refuses it
        put_model(
            folder / "broken.safetensors", dataclasses.replace(two_models()[0], params=nothing)
        )
    put_model(
        folder / "one_line.safetensors", make(vocabulary=Vocabulary((*"aent", "<unk>"), "char"))
    )
    for name in ("text.tsv", "train.tsv"):
        (folder / name).write_text(TEXT)
    (folder / "folder.tsv").mkdir()
    before = content(folder)
    outcomes = run_elsewhere(
        "experiments.score", *WAYS, *MISTAKES.values(), cwd=folder, before=STANDARD_INPUT
    )
    after = content(folder)
    written = {"scores.jsonl", "lines.tsv", "hypotheses.tsv", "tokens.jsonl"}
    assert after.keys() - before.keys() == written
    assert before.items() <= after.items()
    refused = dict(zip(MISTAKES, outcomes[len(WAYS) :], strict=True))
    return folder, models, outcomes[: len(WAYS)], refused


def test_program_scores_in_every_way(scored):
    folder, models, (*outcomes, of_hypotheses, of_tokens), _ = scored
    assert of_tokens == outcomes[0]
    assert of_hypotheses.out == outcomes[4].out.replace("text.tsv", "-")
    assert [(outcome.status, outcome.err) for outcome in outcomes] == [(0, "")] * 5
    outputs = [outcome.out.splitlines() for outcome in outcomes]
    for first, second, third in outputs[:4]:
        assert "11 tokens in 4 lines, 2 models averaged" in first
        assert second.endswith("read as <unk>: 3 tokens, 2 different: zebra (2 times), ran")
        assert third.endswith(", 8 tokens")
    assert "12 tokens in 4 lines" in outputs[4][0]
    expected = perplexities(models, read_text(folder / "text.tsv", models[0]))
    for lines, figure in zip(outputs, expected, strict=True):
        assert f"text.tsv: perplexity {figure:.2f}, {math.log(figure):.4f} nats" in lines[0]
    assert len({lines[0] for lines in outputs}) == 5
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    total = -sum(record["log_probability"] for record in scores)
    assert np.exp(total / 11) == pytest.approx(expected[0])
    tokens = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    assert [record["token"] for record in tokens[:4]] == ["the", "cat", "sat", "<eos>"]
    known = -sum(record["log_probability"] for record in tokens[1:] if not record["unknown"]) / 8
    assert outputs[0][2].startswith(f"without <unk>: perplexity {np.exp(known):.2f}, {known:.4f} n")
    lines = [line.split("\t") for line in (folder / "lines.tsv").read_text().splitlines()]
    named = [line.split("\t") for line in (folder / "hypotheses.tsv").read_text().splitlines()]
    assert named == [
        [line[0], "utterance_id" if i == 0 else "id", *line[1:]] for i, line in enumerate(lines)
    ]
    assert len(lines) == 5


@pytest.mark.parametrize("reason", MISTAKES)
def test_mistake_is_refused_in_one_line(scored, reason):
    *_, refused = scored
    assert_refused(refused[reason], reason)


def test_scores_are_there_before_the_report_is_read(tmp_path):
    put_model(Workdir(tmp_path / "run").model, two_models()[0])
    (tmp_path / "text").write_text(TEXT)
    flags = ("-m", "experiments.score", "--workdir=run", "text", "--scores=scores.tsv")
    with start_python(*flags, cwd=tmp_path, PYTHONUNBUFFERED="1") as process:
        assert process.stdout is not None
        process.stdout.close()  # as `head` does, only sooner
        process.wait(timeout=300)
    assert len((tmp_path / "scores.tsv").read_text().splitlines()) == 5


def test_perplexity_is_not_lost_when_the_scores_cannot_be_written(scored):
    *_, refused = scored
    assert "perplexity" in refused[UNWRITTEN].out
    assert refused[NO_FOLDER].out == ""


# What is taken where a flag is left out, by the way of scoring that it belongs to.
TUNED = {
    ("--cache_window=4",): ("--cache_theta=0.6", "--cache_weight=0.1"),
    ("--dynamic=sgd",): ("--dynamic_rate=0.3",),
    ("--dynamic=rms", "--train_file=text"): ("--dynamic_rate=4e-4",),
}


def test_settings_that_are_left_out_are_those_that_were_tuned(tmp_path):
    put_model(Workdir(tmp_path / "run").model, two_models()[0])
    (tmp_path / "text").write_text(TEXT)
    ways = [(*way, *told) for way, tuned in TUNED.items() for told in ((), tuned)]
    lines = [
        ["--workdir=run", "text", *way, f"--scores={number}.jsonl"]
        for number, way in enumerate(ways)
    ]
    outcomes = run_elsewhere("experiments.score", *lines, cwd=tmp_path)
    assert [(outcome.status, outcome.err) for outcome in outcomes] == [(0, "")] * 6
    scores = [(tmp_path / f"{number}.jsonl").read_bytes() for number in range(6)]
    assert scores[::2] == scores[1::2]
    assert len(set(scores)) == len(TUNED)
