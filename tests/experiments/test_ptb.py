"""The program as a user runs it: a whole run, and every kind of mistake in flags and texts."""

import datetime
import gzip
import json
import math
import re
import shlex
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import (
    CONFIG,
    FLAGS,
    TEXT,
    WORDS,
    assert_refused,
    content,
    last_state,
    metrics,
    run,
    run_process,
    summary_of,
    table,
    write_texts,
)

from zaremba_jax.config import to_dict
from zaremba_jax.data.units import EOS
from zaremba_jax.data.windows import windows
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.train import init_train_state, train_windows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from beginning to end: its folder and its outcome."""
    folder = tmp_path_factory.mktemp("finished")
    write_texts(folder)
    watched = ("--samples_each_epoch=2", "--log_minutes=0")  # which change no bit
    return folder, run_process(*FLAGS, *watched, "--workdir=run", cwd=folder)


def test_run_ends_well_and_leaves_all_its_files(finished):
    folder, outcome = finished
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert {path.name for path in (folder / "run").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "curves.png",
        "model.safetensors",
        "checkpoints",
    }
    assert json.loads((folder / "run" / "config.json").read_text()) == to_dict(CONFIG)
    assert (folder / "run" / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    checkpoints = folder / "run" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"119", "238", "history.jsonl"}


def test_exported_model_is_the_trained_one(finished):
    folder, _ = finished
    model = load_model(folder / "run" / "model.safetensors")
    assert model.config == CONFIG
    assert set(model.vocabulary.words) == {*WORDS, EOS}
    trained = last_state(folder / "run").params
    jax.tree.map(np.testing.assert_array_equal, model.params, trained)


def test_metrics_have_a_line_an_epoch(finished):
    folder, _ = finished
    lines = metrics(folder / "run")
    assert [{key: str(x) for key, x in line.items()} for line in lines] == table(folder / "run")
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["learning_rate"] for line in lines] == [1.0, 0.5]
    for line in lines:
        assert 1 < line["train_perplexity"] < 12
        assert 1 < line["valid_perplexity_estimate"] < 12
        assert line["words_per_second"] > 0
    assert 0 < lines[0]["seconds"] < lines[1]["seconds"]


def test_summary_has_the_figures_and_what_they_depend_on(finished):
    folder, _ = finished
    summary = summary_of(folder / "run")
    assert summary["config"] == to_dict(CONFIG)
    assert (summary["seed"], summary["epochs"], summary["corpus"]) == (0, 2, "train.txt")
    assert 1 < summary["valid_perplexity"] < 12
    assert 1 < summary["test_perplexity"] < 12
    assert 8 < summary["unigram_perplexity"] < 10
    assert summary["floor_perplexity"] is None
    assert summary["paper_test_perplexity"] is None
    assert summary["words_per_second"] > 0
    assert summary["seconds"] == metrics(folder / "run")[-1]["seconds"]
    assert {"python", "jax", "numpy"} <= summary["versions"].keys()
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(summary["date"])
    assert 0 <= age.total_seconds() < 3600
    assert shlex.split(summary["command"])[-len(FLAGS) - 3 : -3] == list(FLAGS)
    assert 2**26 < summary["peak_host_memory_bytes"] < 2**36
    assert summary["peak_device_memory_bytes"] is None


def test_output_has_a_line_an_epoch_and_the_table_and_no_escape_codes_off_a_terminal(finished):
    folder, outcome = finished
    summary = summary_of(folder / "run")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("device: CPU, ")
    assert lines[1:3] == ["text: train.txt, 1,200 words, 9 types", "model: 697 parameters"]
    assert lines[3].startswith("training: 2 epochs × 119 windows; the arrays take about 1 MiB of ")
    assert lines[4].split()[:4] == ["epoch", "rate", "train", "valid"]
    assert lines[5].startswith("1/2  3% ")
    epochs = [number for number, line in enumerate(lines) if re.match("./2   ", line)]
    assert [lines[number][:8] for number in epochs] == ["1/2     ", "2/2     "]
    for number in epochs:
        for sample in lines[number + 1 : number + 3]:
            assert set(sample.strip(" “”").split()) <= set(WORDS)
    (row,) = [line for line in lines if "this run" in line]
    assert f"{summary['valid_perplexity']:.2f}" in row
    assert f"{summary['test_perplexity']:.2f}" in row
    assert lines[-1] == "the whole run is in run"
    assert "\x1b" not in outcome.out + outcome.err


def test_finished_run_trains_no_more_and_reports_the_same(finished, folder):
    shutil.copytree(finished[0] / "run", "run")
    before = content(folder)
    outcome = run(*FLAGS, "--workdir=run", draw=True)
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert lines[4] == "resuming run after epoch 2, window 0"
    assert lines[5:] == finished[1].out.splitlines()[5 - len(lines) :]
    assert content(folder) == before
    sampled = run(*FLAGS, "--workdir=run", "--mc_samples=2")
    summary = summary_of(folder / "run")
    (row,) = (line for line in sampled.out.splitlines() if "Monte Carlo, 2 samples" in line)
    assert f"{summary['mc_valid_perplexity']:.2f}" in row
    assert summary["mc_test_perplexity"] != summary["test_perplexity"]
    assert row in run(*FLAGS, "--workdir=run").out.splitlines()  # what took long is kept
    assert summary_of(folder / "run") == summary


@pytest.mark.slow
def test_run_keeps_the_kernel_that_auto_took(folder):
    flags = (*FLAGS, "--epochs=1", "--kernel=auto", "--workdir=run")
    assert run(*flags).status == 0
    kernel, summary, config = (
        json.loads((folder / "run" / f"{name}.json").read_text())
        for name in ("kernel", "summary", "config")
    )
    assert kernel == summary["kernel"]
    assert (config["kernel"], kernel["kernel"], summary["config"]["kernel"]) == (
        "auto",
        "custom_vjp",
        "custom_vjp",
    )
    (folder / "run" / "kernel.json").write_text(json.dumps(kernel | {"kernel": "pallas"}))
    assert run(*flags).status == 0
    summary = summary_of(folder / "run")
    assert summary["config"]["kernel"] == summary["kernel"]["kernel"] == "pallas"


def test_run_needs_no_matplotlib(finished, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shutil.copytree(finished[0] / "run", "run")
    (folder / "run" / "curves.png").unlink()
    outcome = run(*FLAGS, "--workdir=run")
    assert outcome.status == 0
    assert "no curves.png without matplotlib: pip install 'zaremba-jax[plots]'" in outcome.out
    assert not (folder / "run" / "curves.png").exists()


def test_mistake_ends_the_process_in_one_line_and_writes_nothing(folder):
    before = content(folder)
    outcome = run_process("--train_file=absent.txt", *TEXT[1:], cwd=folder)
    assert_refused(outcome, "absent.txt: no such file")
    assert content(folder) == before


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        (b"a b\nc \xff d\n", ["train.txt: not UTF-8 text at byte 6", "convert the file to UTF-8"]),
        (b"a b c d e f g h\n", ["cannot fill 2 streams of 5 + 1; give at least 12 tokens, or"]),
    ],
    ids=["not UTF-8", "too few tokens"],
)
def test_bad_text_is_refused_and_nothing_is_written(folder, text, telling):
    (folder / "train.txt").write_bytes(text)
    before = content(folder)
    assert_refused(run(*FLAGS), *telling)
    assert content(folder) == before


@pytest.mark.parametrize("split", ["valid", "test"])
def test_text_without_anything_to_predict_is_refused_before_training(folder, split):
    (folder / "one.txt").write_text("\n")
    before = content(folder)
    outcome = run(*FLAGS, "--unit=char", f"--{split}_file=one.txt")
    assert_refused(outcome, "a text of 1 tokens has nothing to predict")
    assert content(folder) == before


BAD_FLAGS = [
    (["--dropout=1"], ["dropout=1.0", "at least 0 and below 1"]),
    (["--hidden_size=abc"], ["hidden_size=abc: must be a whole number", "see --help"]),
    (["--hidden_size=2.5"], ["hidden_size=2.5", "see --help"]),
    (["--chunk=0"], ["chunk=0", "positive", "see --help"]),
    (["--config=huge"], ["config=huge", "quick|small|medium|large", "see --help"]),
    (["--droput=0.5"], ["--droput: ", "did you mean --dropout or --word_dropout? see --help"]),
    (["medium"], ["'medium' is not a flag", "see --help"]),
    (TEXT[:1], ["--train_file, --valid_file and --test_file go together", "give all"]),
    (["--valid_fraction=0.1"], ["--train_file, --valid_file and --test_file go together"]),
    ([*TEXT, "--test_fraction=0.1"], ["--test_fraction: takes the place of --test_file"]),
    (
        [TEXT[0], "--valid_fraction=0.5", "--test_fraction=0.5"],
        ["--valid_fraction=0.5, --test_fraction=0.5: must be above 0, and below 1 together"],
    ),
    (
        [TEXT[0], "--valid_fraction=0", "--test_fraction=0.1"],
        ["--valid_fraction=0.0, --test_fraction=0.1: must be above 0, and below 1 together"],
    ),
    (
        [TEXT[0], TEXT[1], "--test_fraction=0.0001"],
        ["train.txt: --test_fraction=0.0001 leaves the test text without a line"],
    ),
    (TEXT[1:], ["--train_file, --valid_file and --test_file go together", "give all"]),
    (
        [TEXT[0], "--valid_file=", TEXT[2]],
        ["--train_file, --valid_file and --test_file go together", "give all"],
    ),
    (["--samples_each_epoch=100000000"], ["samples_each_epoch=100000000", "see --help"]),
    (["--corpus=files"], ["corpus=files: is your own text; give --train_file"]),
    ([*TEXT, "--corpus=ptb"], ["--train_file: is your own text", "reads ptb", "leave out"]),
    (["--corpus=wiki"], ["--corpus=wiki", "<toy|ptb|ptb-char|wikitext-2|wikitext-103|text8|"]),
    (["--data_dir=d"], ["--data_dir=d", "reads toy", "--corpus=ptb", "leave it out"]),
    (["--config=small", "--data_dir=d"], ["d: lacks ptb.train.txt, ptb.valid.txt, ptb.test"]),
    (["--corpus=text8", "--data_dir=d"], ["d: lacks text8 (or text8.zip)"]),
    ([*TEXT, "--vocab_size=2"], ["vocab_size=2", "leaves no word", "at least 3"]),
    ([*TEXT, "--min_count=999"], ["min_count=999", "leaves no word", "a lower min_count"]),
    ([*TEXT, "--unit=byte", "--min_count=2"], ["min_count=2", "bytes has all 256"]),
    ([*TEXT, "--cache_dir=train.txt"], ["train.txt/encoded/", "not a directory; name another"]),
    (["--train_file=*.gz", *TEXT[1:]], ["*.gz: no such file", "or a glob in quotes"]),
    (["--unit=char"], ["--unit=char", "toy is read by the word", "leave it out"]),
    (["--config=small", "--unit=char"], ["--unit=char", "ptb is read by the word"]),
    (["--min_count=2"], ["--min_count=2", "built-in corpus has its own vocabulary"]),
    ([*TEXT, "--workdir=train.txt"], ["train.txt: is a file", "name a folder"]),
]


@pytest.mark.parametrize(
    ("flags", "telling"), BAD_FLAGS, ids=[" ".join(flags) for flags, _ in BAD_FLAGS]
)
def test_bad_flag_is_refused_and_nothing_is_written(folder, flags, telling):
    before = content(folder)
    assert_refused(run(*flags), *telling)
    assert content(folder) == before


def test_run_by_characters_of_many_packed_files(folder):
    lines = (folder / "train.txt").read_bytes().splitlines(keepends=True)
    for number, part in enumerate((lines[:50], lines[50:])):
        (folder / f"part-{number}.gz").write_bytes(gzip.compress(b"".join(part)))
    texts = ("--train_file=part-*.gz", *TEXT[1:])
    small = ("--unroll=20", "--epochs=1", "--batch_size=10", "--unit=char")
    outcome = run(*texts, *FLAGS[len(TEXT) :], *small, "--workdir=run")
    assert outcome.status == 0, outcome.err
    summary = summary_of(folder / "run")
    assert (summary["corpus"], summary["unit"]) == ("part-*.gz", "char")
    assert 0 < summary["test_bits"] == pytest.approx(math.log2(summary["test_perplexity"]))
    assert " bits  characters/s " in outcome.out
    (row,) = [line for line in outcome.out.splitlines() if "bits per character" in line]
    assert f"{summary['test_bits']:.3f}" in row


def test_penn_treebank_file_that_is_not_the_published_one_is_refused(folder):
    for split in ("train", "valid", "test"):
        (folder / f"ptb.{split}.txt").write_text("edited\n")
    before = content(folder)
    outcome = run("--config=small", f"--data_dir={folder}")
    assert_refused(outcome, "ptb.train.txt: sha256", "not the published file's", "(--train_file)")
    assert content(folder) == before


def test_workdir_of_another_configuration_is_refused_naming_both_values(finished, folder):
    shutil.copytree(finished[0] / "run", "run")
    before = content(folder)
    outcome = run(*FLAGS, "--hidden_size=9", "--seed=4", "--workdir=run")
    assert_refused(
        outcome,
        "run: holds a run of another configuration",
        "hidden_size (8 there, 9 here), seed (0 there, 4 here);",
        "name another --workdir",
    )
    assert content(folder) == before


@pytest.mark.parametrize(
    ("name", "text"), [("train.txt", "other words than those\n" * 100), ("test.txt", "a b\n")]
)
def test_workdir_of_another_text_is_refused_and_kept(finished, folder, name, text):
    shutil.copytree(finished[0] / "run", "run")
    (folder / name).write_text(text)
    if name == "train.txt":
        for other in ("valid.txt", "test.txt"):
            (folder / other).write_text(text)
    before = content(folder)
    outcome = run(*FLAGS, "--workdir=run")
    assert_refused(outcome, "run: holds a run on another text", "name another --workdir")
    assert content(folder) == before


def test_damaged_record_of_the_configuration_is_refused(finished, folder):
    shutil.copytree(finished[0] / "run", "run")
    path = folder / "run" / "config.json"
    path.write_bytes(path.read_bytes()[:40])
    before = content(folder)
    assert_refused(run(*FLAGS, "--workdir=run"), "run/config.json: is damaged", "remove it if")
    assert content(folder) == before


def test_metrics_are_of_the_training_and_the_validation_text(finished):
    folder, _ = finished
    model = load_model(folder / "run" / "model.safetensors")
    train, valid = (
        model.vocabulary.encode(model.vocabulary.tokenize((folder / f"{split}.txt").read_text()))
        for split in ("train", "valid")
    )
    first, last = metrics(folder / "run")
    estimate = perplexity(text_nll(model, valid, streams=20))
    assert last["valid_perplexity_estimate"] == pytest.approx(estimate, rel=1e-6)
    text = jnp.asarray(windows(train, CONFIG.train.batch_size, CONFIG.train.unroll))
    _, statistics = train_windows(CONFIG, init_train_state(CONFIG, len(model.vocabulary)), text)
    expected = perplexity(np.asarray(statistics.nll))
    assert first["train_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_list_whose_name_is_no_text_needs_a_folder_that_is_named(folder):
    (folder / "caf\udce9.txt").write_text("\n".join([*"abcdefgh", "<eos>", "<unk>"]))
    assert_refused(
        run(*FLAGS, "--vocabulary=caf\udce9.txt"), "is not UTF-8, which checkpoints need"
    )
