import gzip
import json
import re

import pytest

from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.vocabulary_files import read_vocabulary, read_word_list
from zaremba_jax.errors import InputError

WORDS = ("the", "[", "<eos>", "<unk>")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.txt", b"the\n[\n<eos>\n<unk>"),
        ("words", b"\xef\xbb\xbfthe \r\n\r\n[\r\n<eos>\r\n<unk>\r\n"),
        (
            "words.gz",
            gzip.compress(b"the\n[\n<eos>\n<unk>\n", mtime=0),
        ),  # ids of tests are the same
        ("words.json", json.dumps(WORDS).encode()),
        ("list", json.dumps(dict(zip(WORDS[::-1], (3, 2, 1, 0), strict=True))).encode()),
    ],
)
def test_word_list_is_lines_or_json_in_the_order_of_its_ids(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_word_list(tmp_path / name) == Vocabulary(WORDS)


def test_list_may_begin_with_a_bracket_and_characters_may_be_spaces_and_marks_long(tmp_path):
    (tmp_path / "words").write_text("[\n{\n<eos>\n<unk>\n")
    assert read_word_list(tmp_path / "words").words == ("[", "{", "<eos>", "<unk>")
    (tmp_path / "characters").write_text(" \na\n<pad>\n")
    assert read_vocabulary(tmp_path / "characters", "char").words == (" ", "a", "<pad>")
    (tmp_path / "characters.json").write_text(json.dumps([" ", "\n", "<unk>"]))
    assert len(read_word_list(tmp_path / "characters.json", "char")) == 3


@pytest.mark.parametrize(
    ("content", "unit", "reason"),
    [
        (b"", "word", "is not a vocabulary (the vocabulary is empty); give distinct words, one a"),
        (b"the\ncat\nthe\n", "word", "the vocabulary repeats the (2 times)"),
        (b"the 50770\n", "word", "the line 'the 50770' has more than a word"),
        (b'["the", 3]', "word", "the vocabulary is not a list of words"),
        (b'{"the": 1}', "word", "its ids are not 0 to 0, each once"),
        (b"the\n</s>\n", "word", "has no <eos> and no <unk>, for the ends of lines and for all"),
        (b"the\n<unk>\n", "word", "has no <eos>, for the ends of lines"),
        (b'["a b", "", "<eos>", "<unk>"]', "word", "holds what no text has as one word: a b, ;"),
        (b'["ab", "\\n", "<unk>"]', "char", "holds what no text has as one character: ab;"),
        (b"a\n<unk>\n", "char", r"has no \n, for the ends of lines"),
        (b"a\n", "byte", "a vocabulary of bytes has all 256; leave it out"),
        (b"\xff\n", "word", "not UTF-8 text at byte 0"),
        (rb'["a\ud800", "<eos>"]', "word", r"'a\ud800' is not a text: a surrogate stands alone"),
    ],
)
def test_list_that_cannot_be_a_text_s_vocabulary_is_refused(tmp_path, content, unit, reason):
    (tmp_path / "words").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(reason)) as refused:
        read_word_list(tmp_path / "words", unit)
    assert str(refused.value).startswith(f"{tmp_path / 'words'}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("read", [read_vocabulary, read_word_list])
def test_unit_that_is_none_is_refused(tmp_path, read):
    (tmp_path / "words").write_text("the\n<eos>\n<unk>\n")
    with pytest.raises(InputError, match="unit='verse': must be one of word, char, byte"):
        read(tmp_path / "words", "verse")
