"""What a record says about the source that its run was trained with, and what the run took."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.training.environment import device_memory, is_installed, peak_host_memory
from experiments.training.provenance import git_commit


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_source_and_tells_of_changes(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook of git has them name the repository that it is of
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user's may sign commits, or run hooks

    def git(*arguments):
        named = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ("git", "-C", str(tmp_path), *named, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "source.py"
    source.write_text("1")
    find = git_commit.__wrapped__
    assert find(source) is None
    git("init")
    git("commit", "--allow-empty", "--message=another")
    assert find(source) is None  # an installed package, in the repository of something else
    git("add", "source.py")
    git("commit", "--message=ours")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert find(source) == commit
    source.write_text("2")
    assert find(source) == f"{commit}-dirty"


def test_memory_is_told_where_the_system_keeps_no_peak_of_it(monkeypatch):
    told = peak_host_memory()
    monkeypatch.setattr(Path, "read_text", lambda *_: "Name:\tpython\nVmRSS:\t50 kB\n")
    assert told / 2 < peak_host_memory() < 2**40


def test_memory_of_a_host_is_in_bytes_and_holds_this_process():
    assert peak_host_memory() < device_memory() < 2**50


def test_folder_of_a_package_s_name_is_not_that_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torch_as_a_folder").mkdir()
    assert not is_installed("torch_as_a_folder")
    assert not is_installed("absent_package")
    assert is_installed("jax")
