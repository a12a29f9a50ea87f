"""Files of any size: tiny blocks stand in for large files."""

import errno
import gzip
import hashlib
import io
import os
import sys
import threading
import zipfile
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaremba_jax.data import text_files
from zaremba_jax.data.text_files import Piece, content_hash, find_files, read_bytes
from zaremba_jax.data.units import EOS, UNITS
from zaremba_jax.errors import InputError

WORDS, CHARACTERS = UNITS["word"], UNITS["char"]
TEXT = st.text(st.sampled_from("ab ñ€😀\n\r\t\u2028"), max_size=40)


@pytest.fixture(autouse=True)
def block(monkeypatch):
    """Blocks of three bytes, so that words, characters and line ends are cut everywhere."""
    monkeypatch.setattr(text_files, "BLOCK", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


def put(folder, content, how="plain"):
    """Writes the bytes to a file; `how` is plain, gzip or zip."""
    path = folder / how
    if how == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("in/side", content)
        return Piece(path, "in/side")
    path.write_bytes(gzip.compress(content) if how == "gzip" else content)
    return Piece(path)


def words(text):
    """The plain definition: lines with any ending, their words, and `<eos>` for each line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), EOS)] if text else []


@given(TEXT, st.sampled_from(["plain", "gzip", "zip"]))
def test_blocks_have_the_words_of_the_text(folder, text, how):
    blocks = WORDS.read(put(folder, text.encode(), how))
    assert [token for block in blocks for token in WORDS.tokenize(block)] == words(text)


@given(TEXT)
def test_blocks_by_character_are_the_text_as_it_is(folder, text):
    assert "".join(CHARACTERS.read(put(folder, text.encode()))) == text


@given(TEXT)
def test_byte_order_mark_at_the_start_of_a_file_is_no_text(folder, text):
    content = text.encode()
    assert "".join(CHARACTERS.read(put(folder, b"\xef\xbb\xbf" + content))) == text
    inside = Piece(put(folder, b"ab\n\xef\xbb\xbf" + content).path, start=3)
    assert "".join(CHARACTERS.read(inside)) == "\ufeff" + text


@given(TEXT)
def test_plain_lines_have_words_with_one_space_between(folder, text):
    plain = "".join(CHARACTERS.read(put(folder, text.encode()), normalize_whitespace=True))
    assert WORDS.tokenize(plain) == words(text)
    assert "  " not in plain
    assert all(line == line.strip() for line in plain.split("\n"))


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_piece_is_the_bytes_from_start_to_stop(folder, content, start, length, packed):
    content = b"plain" + content  # does not begin as a gzip file does
    file = put(folder, content, "gzip" if packed else "plain")
    piece = Piece(file.path, None, start, start + length)
    assert b"".join(read_bytes(piece)) == content[start : start + length]
    assert content_hash(file) == hashlib.sha256(content).hexdigest()


@given(TEXT, st.integers(0, 100))
def test_what_is_not_utf8_is_refused_at_its_byte(folder, text, offset):
    good = text.encode()[: offset // 4 * 4]
    good = good.decode(errors="ignore").encode()
    piece = put(folder, good + b"\xff" + text.encode())
    with pytest.raises(ValueError, match=rf"plain: not UTF-8 text at byte {len(good)}; conv"):
        list(CHARACTERS.read(piece))


def test_character_that_the_end_cuts_is_refused(folder):
    with pytest.raises(ValueError, match="not UTF-8 text at byte 4; convert"):
        list(WORDS.read(put(folder, "aaaañ".encode()[:-1])))


def test_error_of_the_system_while_a_file_is_read_names_it(folder, monkeypatch):
    class Failing(io.BufferedReader):
        def read(self, size=-1, /):
            if self.tell():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    piece = put(folder, b"a b\n")
    monkeypatch.setattr(
        text_files, "open", lambda *_, **__: Failing(io.FileIO(piece.path)), raising=False
    )
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as error:
        list(read_bytes(piece))
    assert error.value.filename == str(piece.path)


@pytest.mark.parametrize("how", ["gzip", "zip"])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_compressed_file_is_refused(folder, how, damage):
    piece = put(folder, bytes(range(250)) * 4, how)
    data = piece.path.read_bytes()
    middle = len(data) // 2 if damage == "cut" else 100
    rest = b"" if damage == "cut" else bytes([255 - data[middle]]) + data[middle + 1 :]
    piece.path.write_bytes(data[:middle] + rest)
    with pytest.raises(ValueError, match=rf"{how}.*: damaged, .*; copy or download it again"):
        list(read_bytes(piece))


def test_files_are_named_alone_with_commas_or_by_globs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "c,d.txt", "e[1].txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "folder.txt").mkdir()

    def names(pattern):
        return [str(piece) for piece in find_files(pattern)]

    assert names("a.txt") == ["a.txt"]
    assert names("b.txt,a.txt") == ["b.txt", "a.txt"]
    assert names("?.txt") == ["a.txt", "b.txt"]
    assert names("c,d.txt") == ["c,d.txt"]
    assert names("e[1].txt") == ["e[1].txt"]
    assert len(names(tmp_path / "*.txt")) == 4
    for folder in ("folder.txt", "folder.txt/deep", "folder.txt/deep/deeper"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "z.txt").write_text("text")
    assert names("folder.txt/**/*.txt") == [
        "folder.txt/deep/deeper/z.txt",
        "folder.txt/deep/z.txt",
        "folder.txt/z.txt",
    ]
    many = [f"{'x' * 50}{n}" for n in range(100)]  # together longer than a path may be
    for name in many:
        (tmp_path / name).write_text("text")
    assert names(",".join(many)) == many


def test_standard_input_that_is_closed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="-: standard input is closed; pipe a text"):
        find_files("-", read_once=True)


def test_streams_are_named_only_where_they_are_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    standard_input, named = find_files(f"-,{pipe}", read_once=True)
    assert str(standard_input) == "/dev/stdin"
    writer = threading.Thread(target=pipe.write_bytes, args=[gzip.compress(b"text")])
    writer.start()
    assert b"".join(read_bytes(named)) == b"text"
    writer.join()
    for name in (pipe, "/dev/stdin"):  # of a redirected file too, there would be nothing left
        with pytest.raises(FileNotFoundError, match=f"{name}: is not a regular file; give"):
            find_files(name)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("-", "^-: is not a regular file; give"),
        ("absent.txt", r"^absent\.txt: no such file; give .* a glob in quotes"),
        ("a.txt,*.gz", r"^\*\.gz: no such file; give"),
        ("..", r"^\.\.: is not a regular file; give"),
        ("x" * 300, "^x{300}: no such file; give"),
        ("a.txt,../{folder}/a.txt", r"names \.\./.*/a\.txt twice; name each file once"),
        ("a.txt,*.txt", r"^a\.txt,\*\.txt: names a\.txt twice; name each file once"),
    ],
)
def test_names_without_a_file_or_with_one_twice_are_refused(
    tmp_path, monkeypatch, pattern, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_files(pattern.format(folder=tmp_path.name))


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)], ids=["encrypted", "method"])
def test_archive_that_cannot_be_unpacked_is_refused(folder, offset, value):
    piece = put(folder, b"a b\n" * 9, "zip")
    data = bytearray(piece.path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + offset] = value
    piece.path.write_bytes(data)
    with pytest.raises(InputError, match=r": damaged, .*; copy or download it again"):
        list(read_bytes(piece))


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        (f"a foo<eos>\n{25 * 'x'}\nb\n", False),
        (f"a <eos>\n{25 * 'x'}\nb\n", True),
        (f"<eos> \n{25 * 'x'}\nb\n", True),
    ],
)
@pytest.mark.parametrize("size", [1, 6, 34, 37, 99])
def test_where_blocks_end_does_not_decide_whether_a_line_ends_in_a_mark(
    folder, monkeypatch, text, is_refused, size
):
    monkeypatch.setattr(text_files, "BLOCK", size)
    refused = pytest.raises(InputError, match="ends in <eos>") if is_refused else nullcontext()
    with refused:
        list(WORDS.read(put(folder, text.encode())))


def test_byte_of_an_argument_that_is_no_text_is_that_byte():
    assert UNITS["byte"].tokenize("caf\udce9") == ["c", "a", "f", "\xe9"]
