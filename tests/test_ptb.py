"""The Penn Treebank's loader, on files of our own in its place; nothing here reaches a network."""

import hashlib
import io

import pytest
import requests
from program import assert_refused, content, run

from zaremba_jax import ptb
from zaremba_jax.ptb import MIRRORS, load_ptb

FILES = {
    "ptb.train.txt": b"the cat sat\nthe <unk> sat\n",
    "ptb.valid.txt": b"the cat\n",
    "ptb.test.txt": b"the dog sat\n",
}


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Our files are the published ones, and the environment names no folder."""
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in FILES.items()}
    monkeypatch.setattr(ptb, "SHA256", hashes)
    monkeypatch.delenv(ptb.DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setattr(ptb.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "zaremba_jax"


@pytest.fixture
def network(monkeypatch):
    """What each address answers: bytes, a status, or an exception; and what was asked for."""
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
    found = hashlib.sha256(b"edited\n").hexdigest()
    with pytest.raises(ValueError, match=rf"ptb\.{split}\.txt: sha256 {found} is not the publ"):
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


def test_without_network_the_error_names_files_addresses_folder_and_a_way_out(
    cache, network, tmp_path, monkeypatch
):
    answers, asked = network
    for mirror in MIRRORS:
        serve(answers, mirror, train=requests.ConnectionError("unreachable"))
    with pytest.raises(ConnectionError) as error:
        load_ptb()
    assert asked == [f"{mirror}ptb.train.txt" for mirror in MIRRORS]
    telling = [*FILES, *MIRRORS, str(cache), "--data_dir", "--config=quick"]
    assert not [part for part in telling if part not in str(error.value)]
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    assert_refused(run("--config=small"), *telling)
    assert content(tmp_path) == before
