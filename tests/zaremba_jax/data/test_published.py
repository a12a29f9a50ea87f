"""Published corpora, replaced by small files of their form; nothing reaches a network."""

import dataclasses
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest
import requests
from invoke import assert_refused, content, run

from zaremba_jax.config import CorpusName
from zaremba_jax.data import published as published_module
from zaremba_jax.data.published import PUBLISHED, SplitSource, data_dir_variable, load_published
from zaremba_jax.data.units import UNITS
from zaremba_jax.data.vocabulary import Vocabulary

REAL = dict(PUBLISHED)

MIRRORS = PUBLISHED["ptb"].base_urls
README = Path(__file__).parents[3] / "experiments" / "README.md"

FILES = {
    "ptb.train.txt": b"the cat sat\nthe <unk> sat\n",
    "ptb.valid.txt": b"the cat\n",
    "ptb.test.txt": b"the dog sat\n",
}


WIKI = {
    "wiki.train.tokens": b" \n = Title = \n \n the <unk> , \n",
    "wiki.valid.tokens": b" \n the \n",
    "wiki.test.tokens": b" = the = \n",
}


def sha256(text):
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Makes our files the published ones, and names no folder in the environment."""

    def replace(name, **changes):
        entry = dataclasses.replace(PUBLISHED[name], **changes)
        monkeypatch.setitem(PUBLISHED, name, entry)
        monkeypatch.delenv(data_dir_variable(name), raising=False)

    hashes = {name: sha256(text) for name, text in FILES.items()}
    replace("ptb", hashes=hashes, tokens=(8, 3, 4))
    replace("ptb-char", hashes=hashes, tokens=(26, 8, 12))
    for name in ("wikitext-2", "wikitext-103"):
        archive = f"{name}-v1.zip"
        replace(name, hashes={archive: sha256(packed(name))}, tokens=(10, 3, 4))
    hundred = bytes(range(97, 117))
    for name in ("text8", "enwik8"):
        (train, valid, test) = (
            SplitSource(name, 0, 10),
            SplitSource(name, 10, 15),
            SplitSource(name, 15, 20),
        )
        hashes = {name: sha256(hundred)}
        replace(name, parts=(train, valid, test), hashes=hashes, tokens=(10, 5, 5))


def zipped(contents):
    """An archive of these files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        for path, text in contents.items():
            files.writestr(zipfile.ZipInfo(path), text)
    return archive.getvalue()


def packed(name):
    """The archive that WikiText is published in."""
    return zipped({f"{name}/{path}": text for path, text in WIKI.items()})


DAMAGED = packed("wikitext-2").replace(b"PK\x01\x02", b"PK\x01\x09")  # its table of contents


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache."""
    folder = tmp_path / "cache" / "zaremba_jax"
    monkeypatch.setattr(published_module, "default_cache_dir", lambda: folder)
    return folder


def load_ptb(data_dir=None):
    return load_published("ptb", data_dir)


@pytest.fixture
def network(monkeypatch):
    """What each address answers: bytes, a status or an exception; and the addresses requested."""
    answers, asked = {}, []

    def get(address, **_):
        asked.append(address)
        answer = answers.get(address, 404)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code = answer if isinstance(answer, int) else 200
        response.raw = io.BytesIO(answer if isinstance(answer, bytes) else b"")
        return response

    monkeypatch.setattr(requests, "get", get)
    return answers, asked


def put(folder, **changed):
    folder.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_bytes(changed.get(name.split(".")[1], text))


def assert_is_ours(corpus):
    assert corpus.name == "Penn Treebank"
    assert corpus.vocabulary.decode(corpus.train) == [
        *("the", "cat", "sat", "<eos>"),
        *("the", "<unk>", "sat", "<eos>"),
    ]
    assert corpus.vocabulary.decode(corpus.valid) == ["the", "cat", "<eos>"]
    assert corpus.vocabulary.decode(corpus.test) == ["the", "<unk>", "sat", "<eos>"]


def serve(answers, mirror, **changed):
    for name, text in FILES.items():
        answers[mirror + name] = changed.get(name.split(".")[1], text)


def test_corpus_that_is_not_in_the_table_is_refused():
    with pytest.raises(ValueError, match="wikitext2: no such corpus; take one of ptb, "):
        load_published("wikitext2")


def test_own_folder_is_read_and_the_network_is_left_alone(tmp_path, network):
    put(tmp_path / "data")
    assert_is_ours(load_ptb(tmp_path / "data"))
    assert network[1] == []


def test_environment_names_the_folder(tmp_path, network, monkeypatch):
    put(tmp_path / "data")
    monkeypatch.setenv("ZAREMBA_JAX_PTB_DIR", str(tmp_path / "data"))
    assert_is_ours(load_ptb())
    assert network[1] == []


def test_argument_goes_before_the_environment(tmp_path, monkeypatch):
    put(tmp_path / "data")
    monkeypatch.setenv("ZAREMBA_JAX_PTB_DIR", str(tmp_path / "absent"))
    assert_is_ours(load_ptb(tmp_path / "data"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_own_file_that_is_not_the_published_one_is_refused(tmp_path, split):
    put(tmp_path / "data", **{split: b"edited\n"})
    digest = sha256(b"edited\n").removeprefix("sha256:")
    with pytest.raises(ValueError, match=rf"ptb\.{split}\.txt: sha256 {digest} is not the publ"):
        load_ptb(tmp_path / "data")


def test_folder_that_lacks_files_is_refused_naming_them(tmp_path):
    put(tmp_path / "data")
    (tmp_path / "data" / "ptb.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"data: lacks ptb\.valid\.txt; put the files"):
        load_ptb(tmp_path / "data")


def test_download_is_kept_in_the_cache_and_made_once(cache, network):
    answers, asked = network
    serve(answers, MIRRORS[0])
    assert_is_ours(load_ptb())
    assert asked == [MIRRORS[0] + name for name in FILES]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == FILES
    assert_is_ours(load_ptb())
    assert len(asked) == 3


@pytest.mark.parametrize(
    "failure",
    [404, requests.ConnectionError(), requests.Timeout(), b"an error page"],
    ids=["no such file", "no connection", "timeout", "wrong content"],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_second_address_is_tried_where_the_first_fails(cache, network, failure, split):
    answers, asked = network
    serve(answers, MIRRORS[0], **{split: failure})
    serve(answers, MIRRORS[1])
    assert_is_ours(load_ptb())
    assert f"{MIRRORS[1]}ptb.{split}.txt" in asked
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == FILES


def test_wrong_content_everywhere_is_refused_and_not_kept(cache, network):
    answers, _ = network
    for mirror in MIRRORS:
        serve(answers, mirror, valid=b"an error page")
    with pytest.raises(ConnectionError, match=r"could not be downloaded from .*ValueError"):
        load_ptb()
    assert {path.name for path in cache.iterdir()} == {"ptb.train.txt"}


def test_damaged_file_in_the_cache_is_downloaded_again(cache, network):
    answers, asked = network
    cache.parent.mkdir()
    put(cache, train=b"damaged")
    serve(answers, MIRRORS[0])
    assert_is_ours(load_ptb())
    assert asked == [f"{MIRRORS[0]}ptb.train.txt"]


def test_cache_that_cannot_be_written_is_no_failure_of_the_network(cache, network):
    cache.parent.mkdir()
    cache.write_text("a file in its way")
    with pytest.raises(NotADirectoryError):
        load_ptb()
    assert network[1] == []


@pytest.mark.parametrize("error", [PermissionError("of pooch"), OSError(28, "No space left")])
def test_disk_that_fails_while_downloading_keeps_its_error(cache, network, error, monkeypatch):
    serve(network[0], MIRRORS[0])
    monkeypatch.setattr("pooch.core.stream_download", mock.Mock(side_effect=error))
    with pytest.raises(type(error)) as caught:
        load_ptb()
    assert (type(caught.value), caught.value.errno) == (type(error), error.errno)
    assert error.errno is None or str(caught.value.filename).startswith(str(cache))


def test_without_network_the_error_names_files_addresses_folder_and_a_way_out(
    cache, network, tmp_path, monkeypatch
):
    answers, asked = network
    for mirror in MIRRORS:
        serve(answers, mirror, train=requests.ConnectionError("unreachable"))
    with pytest.raises(ConnectionError) as error:
        load_ptb()
    assert asked == [f"{mirror}ptb.train.txt" for mirror in MIRRORS]
    telling = [*FILES, *MIRRORS, str(cache), "data_dir", "the preset quick"]
    assert not [part for part in telling if part not in str(error.value)]
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    assert_refused(run("--config=small"), *telling)
    assert content(tmp_path) == before


def test_table_has_every_corpus_that_a_run_can_name_and_the_readme_lists():
    assert PUBLISHED.keys() == set(get_args(CorpusName)) - {"toy", "files"}
    text = README.read_text(encoding="utf-8")
    for name, entry in REAL.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
        millions = entry.tokens[0] % 1_000_000 == 0
        shown = [f"{count // 10**6}" if millions else f"{count:,}" for count in entry.tokens]
        assert row.startswith(", ".join(shown))
        assert UNITS[entry.unit].noun in row


def test_real_entries_have_whole_hashes_of_files_that_they_name_and_parts_as_long_as_said():
    digits = {"sha256": 64, "sha1": 40, "md5": 32}
    for name, entry in REAL.items():
        named = {*entry.files, *(part.file for part in entry.parts)}
        assert named & entry.hashes.keys()
        for digest in entry.hashes.values():
            algorithm, figure = digest.split(":")
            assert re.fullmatch(rf"[0-9a-f]{{{digits[algorithm]}}}", figure)
        if name in ("text8", "enwik8"):
            ranges = [(part.start, part.stop) for part in entry.parts]
            assert ranges == [(0, 90_000_000), (90_000_000, 95_000_000), (95_000_000, 10**8)]


def test_characters_of_the_penn_treebank_are_those_of_plain_lines(tmp_path):
    texts = {**FILES, "ptb.test.txt": b"the tac sat\n"}
    for name, text in texts.items():  # with white space as in the real ones
        (tmp_path / name).write_bytes(b" " + text.replace(b"\n", b" \n"))
    hashes = {name: sha256((tmp_path / name).read_bytes()) for name in FILES}
    PUBLISHED["ptb-char"] = dataclasses.replace(PUBLISHED["ptb-char"], hashes=hashes)
    corpus = load_published("ptb-char", tmp_path)
    assert corpus.vocabulary.unit == "char"
    assert corpus.vocabulary.detokenize(corpus.train) == "the cat sat\nthe <unk> sat\n"


def test_folder_of_both_treebanks_is_named_by_one_variable():
    assert data_dir_variable("ptb") == data_dir_variable("ptb-char") == "ZAREMBA_JAX_PTB_DIR"
    assert data_dir_variable("wikitext-103") == "ZAREMBA_JAX_WIKITEXT_103_DIR"


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
@pytest.mark.parametrize("form", ["archive", "folder", "files"])
def test_wikitext_is_read_as_published_or_unpacked(tmp_path, name, form):
    if form == "archive":
        (tmp_path / f"{name}-v1.zip").write_bytes(packed(name))
    else:
        folder = tmp_path / name if form == "folder" else tmp_path
        folder.mkdir(exist_ok=True)
        for path, text in WIKI.items():
            (folder / path).write_bytes(text)
    corpus = load_published(name, tmp_path)
    assert corpus.vocabulary.detokenize(corpus.train) == "\n= Title =\n\nthe <unk> ,\n"
    assert corpus.vocabulary.detokenize(corpus.valid) == "\nthe\n"
    assert corpus.vocabulary.detokenize(corpus.test) == "= the =\n"


@pytest.mark.parametrize(("name", "unit"), [("text8", "char"), ("enwik8", "byte")])
@pytest.mark.parametrize("form", ["archive", "file"])
def test_hundred_million_are_split_by_place(tmp_path, name, unit, form, monkeypatch):
    text = bytes(range(97, 117))
    if unit == "char":  # whose characters must all occur in the training part
        text = b"abcde" * 4
        entry = dataclasses.replace(PUBLISHED[name], hashes={name: sha256(text)})
        monkeypatch.setitem(PUBLISHED, name, entry)
    if form == "archive":
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(name, text)
    else:
        (tmp_path / name).write_bytes(text)
    corpus = load_published(name, tmp_path)
    assert corpus.vocabulary.detokenize(corpus.train).encode() == text[:10]
    assert corpus.vocabulary.detokenize(corpus.valid).encode() == text[10:15]
    assert corpus.vocabulary.detokenize(corpus.test).encode() == text[15:]
    assert corpus.vocabulary.unit == unit


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("wikitext-2", {}, "lacks wiki.train.tokens, .*or wikitext-2-v1.zip"),
        ("wikitext-2", {"wikitext-2-v1.zip": b"a page"}, "is not a zip archive; replace the file"),
        ("wikitext-2", {"wikitext-2-v1.zip": DAMAGED}, "is not a zip archive; replace the file"),
        ("wikitext-2", {"wikitext-2-v1.zip": packed("other")}, "holds no wikitext-2/wiki.train.to"),
        (
            "wikitext-2",
            {**WIKI, "wiki.test.tokens": b"the\n"},
            "test.tokens: 2 tokens in test, n.*read_corpus",
        ),
        ("wikitext-103", {"wikitext-103-v1.zip": packed("wikitext-103") + b"x"}, "zip: sha256 "),
        ("enwik8", {"enwik8": b"x" * 20}, "enwik8: sha256 .* is not the published file's"),
        (
            "enwik8",
            {"enwik8.zip": zipped({"enwik8": b"x" * 20})},
            r"zip/enwik8: sha256 .* is not the p",
        ),
        ("text8", {}, "lacks text8 .or text8.zip.; put the files there"),
    ],
    ids=[
        "nothing",
        "no zip",
        "damaged",
        "other",
        "size",
        "edited zip",
        "edited file",
        "in a zip",
        "no file",
    ],
)
def test_files_that_are_not_the_published_ones_are_refused(tmp_path, name, files, message):
    for path, content_of in files.items():
        (tmp_path / path).write_bytes(content_of)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_published(name, tmp_path)
    assert "\n" not in str(error.value)


def test_archive_is_downloaded_once_and_split(cache, network):
    answers, asked = network
    address = PUBLISHED["wikitext-2"].base_urls[1] + "wikitext-2-v1.zip"
    answers[address] = packed("wikitext-2")
    assert len(load_published("wikitext-2").train) == 10
    assert len(load_published("wikitext-2").train) == 10
    assert asked.count(address) == 1


def test_cache_may_be_any_folder(tmp_path, cache, network):
    serve(network[0], MIRRORS[0])
    assert_is_ours(load_published("ptb", cache_dir=tmp_path / "mine"))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {*FILES, "encoded"}
    assert not cache.exists()


@pytest.mark.parametrize("limits", [{"vocab_size": 4}, {"min_count": 2}], ids=str)
def test_rare_words_of_a_published_corpus_can_be_left_out(tmp_path, limits):
    put(tmp_path / "data")
    corpus = load_published("ptb", tmp_path / "data", **limits)
    assert corpus.vocabulary.decode(corpus.train[:4]) == ["the", "<unk>", "sat", "<eos>"]


def test_limits_are_given_by_name(tmp_path):
    with pytest.raises(TypeError, match="positional arguments"):
        load_published("ptb", tmp_path, 4)  # pyright: ignore[reportCallIssue]


def test_given_vocabulary_takes_the_place_of_the_published_one(tmp_path):
    put(tmp_path / "data")
    given = Vocabulary(("<unk>", "dog", "sat", "<eos>"))
    corpus = load_published("ptb", tmp_path / "data", vocabulary=given)
    assert corpus.vocabulary == given
    assert corpus.test.tolist() == [0, 1, 2, 3]


def test_page_in_place_of_an_archive_is_not_kept(cache, network):
    answers, _ = network
    address = PUBLISHED["enwik8"].base_urls[0] + "enwik8.zip"
    answers[address] = b"<html>please log in</html>"
    with pytest.raises(ConnectionError, match="no zip archive"):
        load_published("enwik8")
    answers[address] = zipped({"enwik8": bytes(range(97, 117))})
    assert len(load_published("enwik8").train) == 10


def test_file_that_a_download_replaces_is_kept_beside_it(tmp_path, network):
    put(tmp_path / "mine", train=b"edited by hand\n")
    serve(network[0], MIRRORS[0])
    assert_is_ours(load_published("ptb", cache_dir=tmp_path / "mine"))
    put(tmp_path / "mine", train=b"edited again\n")
    load_published("ptb", cache_dir=tmp_path / "mine")
    kept = {path.read_bytes() for path in (tmp_path / "mine").glob("ptb.train.txt.*.replaced")}
    assert kept == {b"edited by hand\n", b"edited again\n"}


def test_page_that_was_left_in_place_of_an_archive_is_downloaded_anew(cache, network):
    answers, _ = network
    cache.mkdir(parents=True)
    (cache / "enwik8.zip").write_bytes(b"<html>please log in</html>")
    address = PUBLISHED["enwik8"].base_urls[0] + "enwik8.zip"
    answers[address] = zipped({"enwik8": bytes(range(97, 117))})
    assert len(load_published("enwik8").train) == 10
    (kept,) = cache.glob("enwik8.zip.*.replaced")
    assert kept.read_bytes() == b"<html>please log in</html>"
