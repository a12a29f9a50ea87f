"""The program that scores texts, and what it writes."""

import dataclasses
import json
import math
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import SETTINGS, assert_refused, content, run, run_elsewhere, summary_of

from experiments.reports.text_scores import (
    independent_nll,
    read_text,
    records,
    stream_nll,
    write_records,
)
from experiments.training.run_folder import Workdir, write_model
from zaremba_jax.config import QUICK, override
from zaremba_jax.data.corpus import windows
from zaremba_jax.data.vocabulary import BYTES, Vocabulary
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.dynamic_evaluation import DynamicConfig, dynamic_nll, mean_squares
from zaremba_jax.inference.independent_lines import lines_nll
from zaremba_jax.inference.neural_cache import CacheConfig, neural_cache_nll
from zaremba_jax.interop.model_file import Model
from zaremba_jax.model import init_params
from zaremba_jax.regularizers import expected_masks

WORDS = Vocabulary(("the", "<eos>", "cat", "<unk>", "sat"))
TEXT = "the cat sat\nthe zebra\n\ncat zebra ran\n"


def make(seed=0, vocabulary=WORDS, **changes):
    config = override(QUICK, layers=1, hidden_size=3, seed=seed, init_scale=1.0, **changes)
    return Model(
        init_params(config.model, len(vocabulary), key=jax.random.key(seed)), config, vocabulary
    )


MODELS = [make(0), make(1)]


def read(model, ids):
    return text_nll(model.params, ids)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return read_text(tmp_path / "text.txt", MODELS[0])


def test_text_is_read_by_lines_and_unknown_words_are_counted(text):
    assert text.lines == ["the cat sat", "the zebra", "", "cat zebra ran"]
    assert text.stream.tolist() == [0, 2, 4, 1, 0, 3, 1, 1, 2, 3, 3, 1]
    assert text.unknown == {"zebra": 2, "ran": 1}


def test_text_that_is_not_written_out_takes_few_bytes_a_token(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat the zebra sat the cat sat on\n" * 4000)
    tracemalloc.start()
    assert len(read_text(tmp_path / "text.txt", MODELS[0]).stream) == 44_000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 44_000 * 60  # a string takes 52, and its list entry 8


def test_stream_is_the_reported_protocol_and_models_are_mixed(text):
    single = stream_nll(MODELS[:1], text, read)
    assert np.isnan(single[0])
    np.testing.assert_allclose(single[1:], read(MODELS[0], text.stream), rtol=1e-6)
    mixed = stream_nll(MODELS, text, read)
    p, q = (np.exp(-read(model, text.stream).astype(np.float64)) for model in MODELS)
    np.testing.assert_allclose(mixed[1:], -np.log((p + q) / 2), rtol=1e-6)


def test_independent_lines_are_scored_alike_wherever_they_stand(tmp_path):
    nll = {}
    for name, lines in (("one", ["cat sat", "the"]), ("other", ["the", "the cat", "cat sat"])):
        (tmp_path / name).write_text("\n".join(lines))
        text = read_text(tmp_path / name, MODELS[0])
        sentences = records(text, independent_nll(MODELS, text), "sentence")
        nll[name] = {record["text"]: record["log_probability"] for record in sentences}
    assert nll["one"] == pytest.approx({line: nll["other"][line] for line in nll["one"]})
    text = read_text(tmp_path / "one", MODELS[0])
    ids = np.array([1, 2, 4, 1], np.int32)  # the end of another line, then the line
    p, q = (np.exp(-read(model, ids).astype(np.float64)) for model in MODELS)
    assert nll["one"]["cat sat"] == pytest.approx(np.log((p + q) / 2).sum(), rel=1e-5)


def test_records_of_tokens_add_up_to_those_of_sentences(text):
    nll = stream_nll(MODELS, text, read)
    sentences, tokens = records(text, nll, "sentence"), records(text, nll, "token")
    assert [record["tokens"] for record in sentences] == [3, 3, 1, 4]
    assert [record["unknown"] for record in sentences] == [0, 1, 0, 2]
    assert tokens[0]["log_probability"] is None
    assert [record["token"] for record in tokens][4:8] == ["the", "zebra", "<eos>", "<eos>"]
    for sentence in sentences:
        parts = [
            record["log_probability"] or 0.0
            for record in tokens
            if record["line"] == sentence["line"]
        ]
        assert sum(parts) == pytest.approx(sentence["log_probability"])
    total = -sum(sentence["log_probability"] for sentence in sentences)
    assert total / 11 == pytest.approx(np.log(perplexity(nll[1:])))


def test_both_forms_of_file_hold_the_same(tmp_path, text):
    tokens = records(text, stream_nll(MODELS, text, read), "token")
    for name in ("scores.jsonl", "new/scores.tsv"):
        write_records(tmp_path / name, tokens)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == tokens
    header, first, second, *rest = (tmp_path / "new/scores.tsv").read_text().splitlines()
    assert header.split("\t") == list(tokens[0])
    assert first == "1\t1\tthe\t0\t"
    assert float(second.split("\t")[-1]) == tokens[1]["log_probability"]
    assert len(rest) == len(tokens) - 2


def test_tabs_and_line_ends_do_not_break_a_table(tmp_path):
    write_records(tmp_path / "x.tsv", [{"text": "a\tb\n\\"}])
    assert (tmp_path / "x.tsv").read_text() == "text\na\\tb\\n\\\\\n"


def test_model_of_characters_without_line_ends_reads_one_stream(tmp_path):
    model = make(vocabulary=Vocabulary(("a", "b", " "), "char"))
    (tmp_path / "text").write_text("ab\nba\n")
    text = read_text(tmp_path / "text", model)
    assert text.stream.tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="--independent: the model's text had no line ends"):
        independent_nll([model], text)


CHARACTERS = Vocabulary(("a", "b", " ", "\n", "\r", "<unk>"), "char")


@pytest.mark.parametrize(
    ("vocabulary", "corpus", "content", "tokens", "lines"),
    [
        (CHARACTERS, "files", b"ab \r\nb", [["a", "b", " ", "\r", "\n"], ["b"]], ["ab \r", "b"]),
        (CHARACTERS, "ptb-char", b" a  b \r\n", [["a", " ", "b", "\n"]], ["a b"]),
        (Vocabulary(("a", "<unk>"), "char"), "files", b"a\n", [["a", "\n"]], ["a"]),
        (Vocabulary(BYTES, "byte"), "files", b"\xff\r\n\xc3\xb1", None, ["\ufffd\r", "ñ"]),
    ],
    ids=["as it is", "plain lines", "rare line ends", "bytes"],
)
def test_text_has_the_tokens_that_a_run_has(tmp_path, vocabulary, corpus, content, tokens, lines):
    (tmp_path / "text").write_bytes(content)
    text = read_text(tmp_path / "text", make(vocabulary=vocabulary, corpus=corpus))
    assert text.lines == lines
    if tokens is None:
        assert text.stream.tolist() == list(content)
    else:
        assert list(text.tokens) == tokens


def test_last_line_is_whole_where_lines_are_scored_alone(tmp_path):
    (tmp_path / "text").write_text("ab\nb")
    model = make(vocabulary=CHARACTERS)
    text = read_text(tmp_path / "text", model, whole_lines=True)
    assert list(text.tokens) == [["a", "b", "\n"], ["b", "\n"]]


def test_unknown_line_ends_are_named_on_one_line(tmp_path):
    (tmp_path / "text").write_bytes(b"a\r\n")
    with pytest.raises(ValueError, match=r"not in the model's vocabulary, .* <unk>: \\r; replace"):
        read_text(tmp_path / "text", make(vocabulary=Vocabulary(("a", "\n"), "char")))


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


@pytest.mark.parametrize(
    ("content", "vocabulary", "reason"),
    [
        (None, WORDS, "text: no such file; give the path"),
        (b" \n\n", WORDS, "text: holds no words"),
        (b"a \xff\n", WORDS, "text: not UTF-8 text at byte 2"),
        (b"a dog\nb dog\n", Vocabulary(("a", "<eos>")), r"2 words are not .* dog \(2 times\), b;"),
    ],
)
def test_text_that_cannot_be_read_is_refused(tmp_path, content, vocabulary, reason):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_text(tmp_path / "text", make(vocabulary=vocabulary))


def perplexities(models, text):
    """Perplexities of the text, by the library, in each way that the program uses below."""

    def mixed(nll, **options):
        def of(model):
            usual = {"compute": model.config.compute, "masks": expected_masks(model.config)}
            return nll(model.params, text.stream, **usual, **options)

        return perplexity(mixture_nll(np.stack([of(model) for model in models])))

    def scaled(params, ids, **usual):
        parts = jnp.asarray(windows(ids, 2, 5))
        return dynamic_nll(params, ids, rms, mean_squares(params, parts, **usual), **usual)

    def independent(params, ids, **usual):
        return np.concatenate(lines_nll(params, text.ids, WORDS.words.index("<eos>"), **usual))

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
    [*BOTH, "--scores=tokens.jsonl", "--each=token"],
]
UNWRITTEN = "text.tsv: file exists; name another, or change what is there"
MISTAKES = {
    "--scores=scores.txt: end the name in .jsonl or .tsv": [*BOTH, "--scores=scores.txt"],
    "--scores=folder.tsv: is a folder; name a file": [*BOTH, "--scores=folder.tsv"],
    "--scores=run0/../text.tsv: would replace text.tsv, which is read; name another": [
        *(*BOTH, "--scores=run0/../text.tsv")
    ],
    "--scores=train.tsv: would replace text.tsv,train.tsv, which is read": [
        *(*BOTH, "--dynamic=rms", "--train_file=text.tsv,train.tsv", "--scores=train.tsv")
    ],
    UNWRITTEN: [*BOTH, "--scores=text.tsv/x.tsv"],
    "--dynamic=rms: give the training text with --train_file": [*BOTH, "--dynamic=rms"],
    "--train_file=text.tsv: 12 tokens are fewer than the 99 + 1 of a step; give more, or a": [
        *(*BOTH, "--dynamic=rms", "--train_file=text.tsv", "--dynamic_segment=99")
    ],
    "--dynamic, --cache_window: give one of the two": [
        *(*BOTH, "--dynamic=sgd", "--cache_window=4")
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
    "text.tsv: a perplexity of nan, the scores are not finite; name another model": [
        *("--workdir=run0,broken.safetensors", "text.tsv", "--scores=broken.tsv")
    ],
    "text.tsv: a perplexity of inf, the scores are not finite; try a lower --dynamic_rate": [
        *(*BOTH, "--dynamic=sgd", "--dynamic_rate=1e30", "--scores=broken.tsv")
    ],
    "give FILE besides the flags; see --help": ["--workdir=run0"],
    "absent.txt: no such file": ["--workdir=run0", "absent.txt"],
    "absent: holds no model": ["--workdir=absent", "text.tsv"],
    "--workdir: names no model; give the folder of a finished run": ["text.tsv"],
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The folder, its models, and the outcomes of every way to score and of every mistake."""
    folder = tmp_path_factory.mktemp("scored")
    of_evaluation = {"zoneout_hidden": 0.4, "zoneout_cell": 0.2, "precision": "bfloat16"}
    models = [make(seed, **of_evaluation) for seed in (0, 1)]
    for seed, model in enumerate(models):
        write_model(Workdir(folder / f"run{seed}").model, model)
    nothing = jax.tree.map(lambda x: np.full_like(x, np.nan), MODELS[0].params)
    write_model(folder / "broken.safetensors", dataclasses.replace(MODELS[0], params=nothing))
    for name in ("text.tsv", "train.tsv"):
        (folder / name).write_text(TEXT)
    (folder / "folder.tsv").mkdir()
    before = content(folder)
    outcomes = run_elsewhere("experiments.score", *WAYS, *MISTAKES.values(), cwd=folder)
    after = content(folder)
    assert after.keys() - before.keys() == {"scores.jsonl", "lines.tsv", "tokens.jsonl"}
    assert before.items() <= after.items()
    refused = dict(zip(MISTAKES, outcomes[len(WAYS) :], strict=True))
    return folder, models, outcomes[: len(WAYS)], refused


def test_program_scores_in_every_way(scored):
    folder, models, (*outcomes, of_tokens), _ = scored
    assert of_tokens == outcomes[0]
    assert [(outcome.status, outcome.err) for outcome in outcomes] == [(0, "")] * 5
    outputs = [outcome.out.splitlines() for outcome in outcomes]
    for first, second in outputs[:4]:
        assert "11 tokens in 4 lines, 2 models averaged" in first
        assert second.endswith("read as <unk>: 3 tokens, 2 different: zebra (2 times), ran")
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
    assert len((folder / "lines.tsv").read_text().splitlines()) == 5


@pytest.mark.parametrize("reason", MISTAKES)
def test_mistake_is_refused_in_one_line(scored, reason):
    *_, refused = scored
    assert_refused(refused[reason], reason)


def test_perplexity_is_not_lost_when_the_scores_cannot_be_written(scored):
    *_, refused = scored
    assert "perplexity" in refused[UNWRITTEN].out
