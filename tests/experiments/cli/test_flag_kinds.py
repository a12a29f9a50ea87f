import pytest
from absl import flags

from experiments.cli.flag_kinds import define_path, define_paths

FLAGS = flags.FLAGS


@pytest.fixture
def defined(monkeypatch):
    """Flags of a path and of several, which are gone after the test."""
    monkeypatch.setenv("HOME", "/home/me")
    define_path("a_path", "~/default", "a path")
    define_paths("some_paths", ["~", "default"], "several paths")
    yield FLAGS
    for name in ("a_path", "some_paths"):
        delattr(FLAGS, name)


def test_paths_begin_at_home_in_flags_and_in_defaults(defined):
    defined(["program"])
    assert defined.a_path == "/home/me/default"
    assert defined.some_paths == ["/home/me", "default"]
    defined(["program", "--a_path=~/a,b,~/c", "--some_paths=~/a, b~,~"])
    assert defined.a_path == "/home/me/a,b,/home/me/c"
    assert defined.some_paths == ["/home/me/a", "b~", "/home/me"]


@pytest.mark.parametrize("path", ["gs://bucket/run", "~/a,s3://bucket/b", "file:///tmp/run"])
@pytest.mark.parametrize("name", ["a_path", "some_paths"])
def test_address_of_a_store_elsewhere_is_refused(defined, name, path):
    with pytest.raises(flags.IllegalFlagValueError, match="only files and folders of this machine"):
        defined(["program", f"--{name}={path}"])


def test_colon_and_slashes_within_a_path_are_its_own(defined):
    defined(["program", "--a_path=./gs://run", "--some_paths=C:/run"])
    assert defined.a_path == "./gs://run"
    assert defined.some_paths == ["C:/run"]


def test_path_with_commas_that_exists_is_one_and_not_several(defined, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dropout=0, [0.5]").mkdir()
    defined(["program", "--some_paths=dropout=0, [0.5]"])
    assert defined.some_paths == ["dropout=0, [0.5]"]
    defined(["program", "--some_paths=dropout=0,1"])
    assert defined.some_paths == ["dropout=0", "1"]


def test_help_says_what_a_path_is(defined):
    assert defined["a_path"].parser.syntactic_help == "a path"
    assert defined["some_paths"].parser.syntactic_help == "a comma separated list"
