"""Texts in a model's vocabulary, the nats that models give them, and records of these."""

import tracemalloc

import numpy as np
import pytest
from model_examples import TEXT, WORDS, make, two_models

from zaremba_jax.data.units import BYTES
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.text_scoring import independent_nll, read_text, records, stream_nll


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return read_text(tmp_path / "text.txt", two_models()[0])


def test_text_is_read_by_lines_and_unknown_words_are_counted(text):
    assert text.lines == ["the cat sat", "the zebra", "", "cat zebra ran"]
    assert text.stream.tolist() == [0, 2, 4, 1, 0, 3, 1, 1, 2, 3, 3, 1]
    assert text.unknown == {"zebra": 2, "ran": 1}


def test_text_that_is_not_written_out_takes_few_bytes_a_token(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat the zebra sat the cat sat on\n" * 4000)
    tracemalloc.start()
    assert len(read_text(tmp_path / "text.txt", two_models()[0]).stream) == 44_000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 44_000 * 60  # a string takes 52, and its list entry 8


def test_stream_is_the_reported_protocol_and_models_are_mixed(text):
    single = stream_nll(two_models()[:1], text, text_nll)
    assert np.isnan(single[0])
    np.testing.assert_allclose(single[1:], text_nll(two_models()[0], text.stream), rtol=1e-6)
    mixed = stream_nll(two_models(), text, text_nll)
    p, q = (np.exp(-text_nll(model, text.stream).astype(np.float64)) for model in two_models())
    np.testing.assert_allclose(mixed[1:], -np.log((p + q) / 2), rtol=1e-6)


def test_independent_lines_are_scored_alike_wherever_they_stand(tmp_path):
    nll = {}
    for name, lines in (("one", ["cat sat", "the"]), ("other", ["the", "the cat", "cat sat"])):
        (tmp_path / name).write_text("\n".join(lines))
        text = read_text(tmp_path / name, two_models()[0])
        sentences = records(text, independent_nll(two_models(), text), "sentence")
        nll[name] = {record["text"]: record["log_probability"] for record in sentences}
    assert nll["one"] == pytest.approx({line: nll["other"][line] for line in nll["one"]})
    text = read_text(tmp_path / "one", two_models()[0])
    ids = np.array([1, 2, 4, 1], np.int32)  # the end of another line, then the line
    p, q = (np.exp(-text_nll(model, ids).astype(np.float64)) for model in two_models())
    assert nll["one"]["cat sat"] == pytest.approx(np.log((p + q) / 2).sum(), rel=1e-5)


def test_records_of_tokens_add_up_to_those_of_sentences(text):
    nll = stream_nll(two_models(), text, text_nll)
    sentences, tokens = records(text, nll, "sentence"), records(text, nll, "token")
    assert [record["tokens"] for record in sentences] == [3, 3, 1, 4]
    assert [record["unknown"] for record in sentences] == [0, 1, 0, 2]
    assert tokens[0]["log_probability"] is None
    assert [record["place"] for record in tokens] == [1, 2, 3, 4, 1, 2, 3, 1, 1, 2, 3, 4]
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


def test_model_of_characters_without_line_ends_reads_one_stream(tmp_path):
    model = make(vocabulary=Vocabulary(("a", "b", " "), "char"))
    (tmp_path / "text").write_text("ab\nba\n")
    text = read_text(tmp_path / "text", model)
    assert text.stream.tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"^the model's text had no line ends after which"):
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


def test_one_blank_ends_an_utterance_id_and_the_next_is_text(tmp_path):
    (tmp_path / "text").write_text(" u1  a\nu2\tb\n")
    text = read_text(tmp_path / "text", make(vocabulary=CHARACTERS), with_utterance_ids=True)
    assert text.utterance_ids == ["u1", "u2"]
    assert list(text.tokens) == [[" ", "a", "\n"], ["b", "\n"]]


def test_last_line_is_whole_where_lines_are_scored_alone(tmp_path):
    (tmp_path / "text").write_text("ab\nb")
    model = make(vocabulary=CHARACTERS)
    text = read_text(tmp_path / "text", model, whole_lines=True)
    assert list(text.tokens) == [["a", "b", "\n"], ["b", "\n"]]


@pytest.mark.parametrize("vocabulary", [WORDS, Vocabulary(BYTES, "byte")], ids=["word", "byte"])
def test_empty_hypotheses_have_the_probability_of_their_ends(tmp_path, vocabulary):
    (tmp_path / "text").write_text("é-1\n2 \n")
    model = make(vocabulary=vocabulary)
    text = read_text(tmp_path / "text", model, whole_lines=True, with_utterance_ids=True)
    assert [len(line) for line in text.ids] == [1, 1]
    sentences = records(text, independent_nll([model], text), "sentence")
    assert [list(record.values())[:2] for record in sentences] == [[1, "é-1"], [2, "2"]]
    assert sentences[0]["log_probability"] == sentences[1]["log_probability"] < 0


def test_line_without_its_id_is_refused(tmp_path):
    (tmp_path / "text").write_text("u1 the cat\n\n")
    with pytest.raises(ValueError, match=r"text: line 2 has no utterance id; put one before each"):
        read_text(tmp_path / "text", two_models()[0], with_utterance_ids=True)


def test_unknown_line_ends_are_named_on_one_line(tmp_path):
    (tmp_path / "text").write_bytes(b"a\r\n")
    with pytest.raises(ValueError, match=r"not in the model's vocabulary, .* <unk>: \\r; replace"):
        read_text(tmp_path / "text", make(vocabulary=Vocabulary(("a", "\n"), "char")))


@pytest.mark.parametrize(
    ("content", "vocabulary", "reason"),
    [
        (None, WORDS, "text: no such file; give the path"),
        (b"", WORDS, "text: holds no words"),
        (b"\n\n", Vocabulary(("a", "<unk>")), "text: holds no words"),
        (b"a \xff\n", WORDS, "text: not UTF-8 text at byte 2"),
        (b"a dog\nb dog\n", Vocabulary(("a", "<eos>")), r"2 words are not .* dog \(2 times\), b;"),
    ],
)
def test_text_that_cannot_be_read_is_refused(tmp_path, content, vocabulary, reason):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read_text(tmp_path / "text", make(vocabulary=vocabulary))


def test_unknown_tokens_are_counted_among_those_that_are_scored(tmp_path):
    (tmp_path / "text").write_text("zebra cat\n")
    text = read_text(tmp_path / "text", two_models()[0])
    (record,) = records(text, stream_nll(two_models(), text, text_nll), "sentence")
    assert (record["tokens"], record["unknown"]) == (2, 0)
