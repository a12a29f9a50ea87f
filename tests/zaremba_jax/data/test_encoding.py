"""Encoding in blocks gives the same ids as the vocabulary does, and the cache returns them."""

import gzip
import itertools
import json
import os
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.data import encoding as encoding_module
from zaremba_jax.data import text_files
from zaremba_jax.data.encoding import SPLITS, Encoding, read_corpus
from zaremba_jax.data.units import BYTES, EOS, UNITS, UNK
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError

LINES = st.lists(
    st.text(st.sampled_from("aabñ😀 "), min_size=1, max_size=8), min_size=1, max_size=8
)
NAMES = st.sampled_from(["word", "char", "byte"])


@pytest.fixture(autouse=True)
def block(monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 5)


@pytest.fixture
def texts(tmp_path):
    """Three texts of one file each."""
    for name, text in (("train", "a b b\nc\n"), ("valid", "b\n"), ("test", "a a\n")):
        (tmp_path / name).write_text(text)
    return [tmp_path / name for name in SPLITS]


@pytest.fixture
def written(monkeypatch):
    """The calls that encoded texts instead of taking them from the cache."""
    calls, write = [], encoding_module._write
    monkeypatch.setattr(encoding_module, "_write", lambda *args: (calls.append(args), write(*args)))
    return calls


def cached(folder):
    return sorted(path.name for path in (folder / "encoded").iterdir())


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_last_lines_of_a_text_may_validate_and_test(tmp_path, compress):
    for name, lines in (("a", "a b\n" * 6), ("b", "b a\n" * 4)):
        (tmp_path / name).write_bytes(compress(lines.encode()))
    for fractions, lengths in (((0.2, 0.1), (7, 2, 1)), ((0.15, 0.3), (6, 1, 3))):
        corpus = read_corpus("", f"{tmp_path}/[ab]", *fractions, cache_dir=tmp_path)
        splits = [corpus.vocabulary.detokenize(getattr(corpus, name)) for name in SPLITS]
        assert tuple(split.count("\n") for split in splits) == lengths
        assert "".join(splits) == "a b\n" * 6 + "b a\n" * 4
    (tmp_path / "returns").write_bytes(b"a b\r" * 40)  # which end no line
    for name in ("b", "returns"):
        with pytest.raises(
            ValueError, match=r": test=0\.01 leaves the test text without a line; .* line feed"
        ):
            read_corpus("", tmp_path / name, tmp_path / "a", 0.01, cache_dir=tmp_path)


@given(LINES, NAMES, st.integers(0, 6), st.integers(1, 2))
def test_ids_are_those_of_the_vocabulary_of_the_training_text(
    tmp_path_factory, lines, unit, size, min_count
):
    folder = tmp_path_factory.mktemp("text")
    text = "".join(f"{line} x\n" for line in lines)
    (folder / "text").write_bytes(text.encode())
    try:
        expected = Vocabulary.from_tokens(UNITS[unit].tokenize(text), unit, size, min_count)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:30]):
            read_corpus(
                "c",
                *[folder / "text"] * 3,
                encoding=Encoding(unit, size, min_count),
                cache_dir=folder,
            )
        return
    corpus = read_corpus(
        "c", *[folder / "text"] * 3, encoding=Encoding(unit, size, min_count), cache_dir=folder
    )
    assert corpus.vocabulary == expected
    for ids in (corpus.train, corpus.valid, corpus.test):
        np.testing.assert_array_equal(ids, expected.encode(UNITS[unit].tokenize(text)))


def test_corpus_of_files_encodes_all_with_the_training_vocabulary(texts, tmp_path):
    corpus = read_corpus("mine", *texts, cache_dir=tmp_path)
    assert corpus.name == "mine"
    assert corpus.vocabulary.words == (EOS, "b", "a", "c")
    assert corpus.valid.tolist() == [1, 0]
    assert corpus.test.tolist() == [2, 2, 0]


def test_given_vocabulary_takes_the_place_of_the_training_text_s(texts, tmp_path):
    given = Vocabulary(("z", UNK, EOS, "b"))
    corpus = read_corpus("c", *texts, encoding=Encoding(vocabulary=given), cache_dir=tmp_path)
    assert corpus.vocabulary == given
    assert corpus.valid.tolist() == [3, 2]
    assert corpus.test.tolist() == [1, 1, 2]


def test_many_files_packed_or_not_are_one_text_in_the_order_named(texts, tmp_path):
    (tmp_path / "2").write_bytes(gzip.compress(b"c\n"))
    (tmp_path / "1").write_text("a b b")  # its last line has no line end
    whole = read_corpus("c", *texts, cache_dir=tmp_path)
    parts = read_corpus("c", f"{tmp_path}/1,{tmp_path}/2", *texts[1:], cache_dir=tmp_path)
    globbed = read_corpus("c", f"{tmp_path}/[12]", *texts[1:], cache_dir=tmp_path)
    turned = read_corpus("c", f"{tmp_path}/2,{tmp_path}/1", *texts[1:], cache_dir=tmp_path)
    assert parts.fingerprint == globbed.fingerprint == whole.fingerprint
    assert turned.train.tolist() == [3, 0, 2, 1, 1, 0]


@pytest.mark.parametrize(
    ("types", "dtype"), [(256, "u1"), (257, "u2"), (65536, "u2"), (65537, "i4")]
)
def test_ids_are_mapped_in_the_smallest_type_that_holds_them(tmp_path, types, dtype, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 2**20)
    words = " ".join(map(str, range(types - 1)))
    (tmp_path / "text").write_text(f"{words}\n")
    corpus = read_corpus("c", *[tmp_path / "text"] * 3, cache_dir=tmp_path)
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.sort(corpus.train), np.arange(types))


def test_cache_is_keyed_by_content_and_encoding(texts, tmp_path, written):
    first = read_corpus("c", *texts, cache_dir=tmp_path)
    copies = [path.rename(path.with_suffix(".txt")) for path in texts]
    assert read_corpus("c", *copies, cache_dir=tmp_path).fingerprint == first.fingerprint
    assert len(written) == 1
    encodings = [Encoding("char"), Encoding("byte"), Encoding(vocab_size=3), Encoding(min_count=2)]
    encodings += [Encoding(vocabulary=Vocabulary((EOS, *words))) for words in ("cba", "abc")]
    for count, encoding in enumerate([*encodings, Encoding("char", normalize_whitespace=True)], 2):
        read_corpus("c", *copies, encoding=encoding, cache_dir=tmp_path)
        assert len(written) == count
    for path in copies:
        path.write_text("a b b\nc\nb\n")
        read_corpus("c", *copies, cache_dir=tmp_path)
    assert len(written) == 11
    assert len(cached(tmp_path)) == 11


# The cache's key and the fingerprint of each encoding of the three texts below. Checkpoints hold
# the fingerprints. The keys were others until a limit, however wide, gave an <unk>.
ENCODED = [
    (Encoding(), "15d96667d57d9461ec09", "c2670da3cb44461f991a"),
    (Encoding(vocab_size=4), "c9ca14f58fb1e0d4c4ae", "7a8a676726e202ab0e03"),
    (Encoding("char"), "1995e20f3a276122b367", "f666442f5f0b30f37f2c"),
    (Encoding("char", min_count=2), "6e113c7eb8440419fc82", "136d3535df276a87250e"),
    (Encoding("char", normalize_whitespace=True), "cefeda7360baf1b236cb", "7eea015e626df7a9c9f8"),
    (Encoding("byte"), "77c5bda957bd764263b3", "9e6d73c8c071df123afe"),
]


@pytest.mark.parametrize(("encoding", "key", "fingerprint"), ENCODED)
def test_keys_of_the_cache_and_fingerprints_are_those_of_before(
    tmp_path, encoding, key, fingerprint
):
    contents = "a cafe\u0301  ñ\r\nb b 😀\n\n<unk> a\nend", "b a\n", " a\r\nb b"
    for split, content in zip(SPLITS, contents, strict=True):
        (tmp_path / split).write_bytes(content.encode())
    texts = [tmp_path / split for split in SPLITS]
    corpus = read_corpus("c", *texts, encoding=encoding, cache_dir=tmp_path)
    assert corpus.fingerprint.startswith(fingerprint)
    (name,) = cached(tmp_path)
    assert name.startswith(key)


@pytest.mark.parametrize("name", ["record.json", *SPLITS])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "nested"])
def test_damaged_cache_is_written_again(texts, tmp_path, written, name, damage):
    fingerprint = read_corpus("c", *texts, cache_dir=tmp_path).fingerprint
    (folder,) = (tmp_path / "encoded").iterdir()
    if damage == "missing":
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        is_record = name == "record.json"
        other = content.replace(b'"a"', b'"z"') if is_record else bytes([content[0] ^ 1])
        other += content[len(other) :]
        assert other != content
        changed = {"cut": content[:-1], "flipped": other, "nested": b"[" * 100_000}
        (folder / name).write_bytes(changed[damage])
    assert read_corpus("c", *texts, cache_dir=tmp_path).fingerprint == fingerprint
    assert len(written) == 2
    assert cached(tmp_path) == [folder.name]


def test_entry_without_a_checksum_is_written_again(texts, tmp_path, written):
    fingerprint = read_corpus("c", *texts, cache_dir=tmp_path).fingerprint
    (path,) = (tmp_path / "encoded").glob("*/record.json")
    record = json.loads(path.read_text())
    del record["fingerprint"]
    path.write_text(json.dumps(record))
    assert read_corpus("c", *texts, cache_dir=tmp_path).fingerprint == fingerprint
    assert len(written) == 2


def test_of_two_processes_that_encode_at_once_the_first_is_kept(texts, tmp_path, monkeypatch):
    count, kept = encoding_module._count, []

    def entry():
        (folder,) = (tmp_path / "encoded").glob("[!p]*")  # not partial
        return folder.stat().st_ino

    def overtaken(*args):
        monkeypatch.setattr(encoding_module, "_count", count)
        read_corpus("c", *texts, cache_dir=tmp_path)
        kept.append(entry())
        return count(*args)

    monkeypatch.setattr(encoding_module, "_count", overtaken)
    assert read_corpus("c", *texts, cache_dir=tmp_path).valid.tolist() == [1, 0]
    assert kept == [entry()]
    assert len(cached(tmp_path)) == 1


def test_text_that_changes_while_it_is_encoded_is_refused_and_leaves_nothing_in_the_cache(
    texts, tmp_path, monkeypatch
):
    def changed_after(count, text, encoding):
        counts = count(text, encoding)
        texts[0].write_text("c b a\na\n")
        return counts

    before = texts[0].read_bytes()
    with monkeypatch.context() as changing:
        count = partial(changed_after, encoding_module._count)
        changing.setattr(encoding_module, "_count", count)
        with pytest.raises(InputError, match="train: changed while it was read; give the command"):
            read_corpus("c", *texts, cache_dir=tmp_path)
    assert cached(tmp_path) == []
    texts[0].write_bytes(before)
    corpus = read_corpus("c", *texts, cache_dir=tmp_path)
    assert corpus.vocabulary.detokenize(corpus.train) == "a b b\nc\n"


def test_cache_can_be_read_by_whom_the_umask_lets(texts, tmp_path):
    before = os.umask(0o022)
    try:
        read_corpus("c", *texts, cache_dir=tmp_path)
    finally:
        os.umask(before)
    (folder,) = (tmp_path / "encoded").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o755


GIVEN = Vocabulary((EOS, "a", "b", "c"))
BAD = [
    ("train", b"", {}, "train: holds no words; give a text"),
    ("train", b" \n\n", {}, "train: holds no words; give a text"),
    ("test", b"\n", {}, "test: holds no words; give"),
    ("valid", b"", {"unit": "char"}, "valid: holds no characters; give"),
    ("valid", b"", {"unit": "byte"}, "valid: holds no bytes; give"),
    ("valid", b"caf\xe9\n", {}, "valid: not UTF-8 text at byte 3; convert"),
    ("test", b"a zebra\n", {}, "test: the word 'zebra' is not in .*min_count=2"),
    ("test", b"a z\n", {"vocabulary": GIVEN}, "test: the word 'z' is not in .*; replace it in"),
    ("test", b"a z\n", {"unit": "char"}, "test: the character 'z' is not in "),
    ("train", b"a b\n", {"min_count": 2}, "min_count=2: leaves no word .* occurs 1 times"),
    ("train", b"a b\n", {"vocab_size": 2}, "vocab_size=2, .*leaves no word .*at least 3"),
    ("train", b"a b\n", {"unit": "byte", "vocab_size": 2}, "a vocabulary of bytes has all 256"),
]


@pytest.mark.parametrize(("split", "content", "options", "message"), BAD)
def test_bad_text_is_refused_and_leaves_nothing_in_the_cache(
    texts, tmp_path, split, content, options, message
):
    (tmp_path / split).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_corpus("c", *texts, encoding=Encoding(**options), cache_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "words"}, "unit='words': must be one of word, char, byte"),
        ({"vocab_size": -1}, "vocab_size=-1: must be at least 0"),
        ({"min_count": 0}, "min_count=0: must be at least 1"),
        ({"min_count": 2, "vocabulary": GIVEN}, "min_count=2: a vocabulary is given, which limits"),
        ({"unit": "char", "vocabulary": GIVEN}, "is of words, .* by characters; give unit=word"),
        ({"vocabulary": Vocabulary(("a", UNK))}, "has no <eos>, which each line end becomes"),
    ],
    ids=str,
)
def test_encoding_outside_its_limits_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Encoding(**options)


def test_limits_may_be_numpy_s():
    limits: Any = {"vocab_size": np.int64(9), "min_count": np.int64(2)}
    assert json.dumps(Encoding(**limits).key) == json.dumps(Encoding(vocab_size=9, min_count=2).key)


@pytest.mark.parametrize("words", [BYTES[::-1], BYTES[:100]], ids=["reversed", "too few"])
def test_given_vocabulary_of_bytes_has_all_of_them_in_their_order(words):
    with pytest.raises(ValueError, match=r"have all 256 bytes in their order, .*; leave it out"):
        Encoding("byte", vocabulary=Vocabulary(words, "byte"))


def test_cache_that_cannot_be_written_is_an_error_of_the_system(texts, tmp_path):
    (tmp_path / "encoded").write_text("a file in its way")
    with pytest.raises(OSError, match="encoded"):
        read_corpus("c", *texts, cache_dir=tmp_path)


@pytest.mark.parametrize("vocabulary", [None, Vocabulary(BYTES, "byte")], ids=["own", "given"])
def test_every_byte_can_be_read_that_is_no_text(tmp_path, vocabulary):
    (tmp_path / "bytes").write_bytes(bytes(itertools.chain(range(255, -1, -1))))
    encoding = Encoding("byte", vocabulary=vocabulary)
    corpus = read_corpus("c", *[tmp_path / "bytes"] * 3, encoding=encoding, cache_dir=tmp_path)
    assert corpus.train.tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize(
    "text",
    ["a b\nb <eos>\na b\n", "a <eos> b <eos>", "a\nb <eos> \t \nb", "a\n" * 9 + "b <eos>\n"],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_text_that_writes_its_line_ends_itself_is_refused(texts, tmp_path, text, normalize):
    texts[2].write_text(text)
    encoding = Encoding(normalize_whitespace=normalize)
    with pytest.raises(ValueError, match=r"<eos>' ends in <eos>, which .* remove <eos> from"):
        read_corpus("c", *texts, encoding=encoding, cache_dir=tmp_path)


@pytest.mark.parametrize("text", ["a <eos> b\n", "a b<eos>\n"])
def test_mark_of_line_ends_within_a_line_is_a_token_as_any_other(tmp_path, text):
    (tmp_path / "text").write_text(text)
    corpus = read_corpus("c", *[tmp_path / "text"] * 3, cache_dir=tmp_path)
    assert corpus.vocabulary.decode(corpus.train) == [*text.split(), "<eos>"]
