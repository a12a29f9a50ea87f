"""The one command, installed or in a clone, and the list of programs."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoke import ROOT

from experiments import __main__ as command


@pytest.fixture
def call(monkeypatch, capsys):
    """A function that gives the command some arguments and returns what it prints."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
        command.main()
        return capsys.readouterr().out

    return call


def test_programs_are_listed_a_line_each(call):
    listed = call()
    assert listed == call("--help") == call("-h")
    assert listed.startswith("usage: python -m experiments.PROGRAM [flags]\n")
    for path in (ROOT / "experiments").glob("[!_]*.py"):
        assert listed.count(f"\n  {path.stem} ") == 1
    assert "  ptb           Trains the paper's language model\n" in listed
    assert max(map(len, listed.splitlines())) <= 80


def test_version_is_told(call):
    assert call("--version").startswith("zaremba-jax 0.")


@pytest.mark.parametrize("asked", ["--help", "--version"])
def test_list_that_cannot_be_printed_is_an_error_in_one_line(call, capsys, asked):
    with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
        with pytest.raises(SystemExit) as end:
            call(asked)
        assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: standard output: no space left on device;")


def test_list_whose_reader_is_gone_ends_in_silence(call, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, contextlib.redirect_stdout(pipe):
        call()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("wrong", "telling"), [("tpb", "did you mean ptb?"), ("x", "give one of")])
def test_mistyped_program_is_refused_with_those_that_there_are(call, capsys, wrong, telling):
    with pytest.raises(SystemExit) as end:
        call(wrong)
    assert end.value.code == 2
    assert telling in capsys.readouterr().err


def test_installed_command_runs_beside_a_folder_of_the_name_of_ours(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "zaremba_programs").symlink_to(ROOT / "experiments")
    (site / "zaremba_jax").symlink_to(ROOT / "zaremba_jax")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise SystemExit('the user’s')")
    code = "from zaremba_programs.__main__ import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "report", "--pages=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((".", "site"))},
        capture_output=True,
        text=True,
    )
    told = "error: --pages: is not a flag of this program; did you mean --page? see --help\n"
    assert result.stderr == told
