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


def test_help_says_what_a_path_is(defined):
    assert defined["a_path"].parser.syntactic_help == "a path"
    assert defined["some_paths"].parser.syntactic_help == "a comma separated list"
