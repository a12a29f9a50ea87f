import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import invoke
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invoke import assert_refused, run, run_elsewhere, start_python
from rich.table import Table

from experiments.cli import program as command_line
from experiments.cli.terminal import Terminal, write_aside, write_out
from experiments.endings.errors import ProgramEndError
from zaremba_jax.data import encoding


def program_that(does) -> ModuleType:
    program = ModuleType("program")
    vars(program)["main"] = does
    return program


def fail_with(message: str) -> None:
    raise jax.errors.JaxRuntimeError(message)


@pytest.mark.parametrize(
    ("does", "telling"),
    [
        (
            lambda: jnp.zeros(1 << 45).block_until_ready(),
            "Out of memory allocating 140737488355328",
        ),
        (lambda: np.zeros(1 << 50), "Unable to allocate 8.00 PiB"),
        (
            lambda: fail_with(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
                " space hbm. Used 21.95G of 15.48G hbm.\nTotal hbm usage >= 22.47G"
            ),
            "Used 21.95G of 15.48G hbm.; end other",
        ),
    ],
    ids=["device", "host", "compiler"],
)
def test_memory_that_does_not_suffice_is_one_line_with_what_takes_less(does, telling):
    outcome = run(program=program_that(does))
    assert_refused(outcome, "not enough memory", telling, "--batch_size", status=1)


def test_program_tells_its_versions():
    outcome = run("--version")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"jax {jax.__version__}" in outcome.out


def test_other_failures_of_the_device_are_not_taken_for_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(program=program_that(lambda: fail_with("INTERNAL: a kernel is wrong")))


@pytest.mark.parametrize(
    ("flag", "telling"),
    [
        ("--checkpoint_minutes=nan", "is no number"),
        ("--clip_norm=nan", "is no number"),
        (f"--mc_samples={10**24}", "in the range [0, 1000000]"),
        (f"--chunk={10**24}", "must be at most 4294967295"),
        (f"--min_count={2**31}", "must be at least 1 and at most 2147483647"),
        ("--stderrthreshold=x", "must be one of"),
        ("--wandb=maybe", "flag --wandb=maybe: must be true or false; see --help"),
        ("--chunk=0.3", "flag --chunk=0.3: must be a whole number; see --help"),
        ("--checkpoint_minutes=x", "flag --checkpoint_minutes=x: must be a number; see --help"),
        ("--verbosity=x", "see --help"),
    ],
)
def test_flag_that_no_run_could_use_is_refused_before_training(folder, flag, telling):
    assert_refused(run(*invoke.FLAGS, flag, "--workdir=run"), flag.split("=")[0][2:], telling)
    assert not (folder / "run").exists()


def test_model_that_no_memory_can_hold_is_refused_before_training(folder):
    refused = run(*invoke.FLAGS, "--hidden_size=100000", "--layers=9", "--workdir=run")
    assert_refused(refused, "layers=9, hidden_size=100000, 9 types: the", "GiB, and")
    assert not (folder / "run" / "checkpoints").exists()


def test_home_in_a_path_is_the_users_and_no_folder_of_that_name(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    names = (f"--{name}_file=~/{name}.txt" for name in ("train", "valid"))
    refused = run(*names, "--test_file=test.txt,~/no.txt", "--workdir=~/run")
    assert_refused(refused, f"error: {folder}/no.txt: no such file")
    assert not (folder / "~").exists()


def test_what_the_system_says_of_a_file_is_told_with_its_name_and_what_to_do(folder):
    refused = run(*invoke.FLAGS, "--workdir=train.txt/run")
    assert_refused(refused, "error: train.txt/run: not a directory; name another with --workdir,")


@pytest.mark.parametrize(
    ("number", "status", "telling"),
    [
        (errno.EROFS, 2, "read-only file system; name another with --cache_dir, or change what is"),
        (errno.EDQUOT, 1, "exceeded; free some space, and give the same command again, or name"),
    ],
)
def test_cache_that_cannot_be_written_is_told_with_the_flag_for_another(
    folder, monkeypatch, number, status, telling
):
    def fail(path, *_args, **_kwargs):
        raise OSError(number, os.strerror(number), str(path))

    home = folder / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(encoding, "partial_folder", lambda path: fail(path.parent.parent))
    assert_refused(run(*invoke.FLAGS, "--workdir=run"), f"{home}: ", telling, status=status)


@pytest.mark.parametrize("platform", ["cuda", "gpuu"])
def test_platform_that_is_not_there_is_told_in_one_line(tmp_path, platform):
    before = f"import jax; jax.config.update('jax_platforms', {platform!r})"
    (outcome,) = run_elsewhere("experiments.benchmark", [], cwd=tmp_path, before=before)
    assert_refused(outcome, f"JAX_PLATFORMS={platform}: ", "set it to cpu, or to what this machine")


def test_number_of_devices_that_jax_cannot_have_is_told_with_its_variable(tmp_path):
    command = ("-m", "experiments.ptb", "--config=quick")
    with start_python(*command, cwd=tmp_path, JAX_NUM_CPU_DEVICES="0") as process:
        _, err = process.communicate(timeout=100)
    outcome = invoke.Outcome(process.returncode, "", err)
    assert_refused(outcome, "JAX_PLATFORMS=cpu, JAX_NUM_CPU_DEVICES=0: ", "set them to what this")


def test_folder_that_was_removed_around_the_program_is_told_in_one_line(folder):
    shutil.rmtree(folder)
    assert_refused(
        run(*invoke.FLAGS), "the current folder was removed; change to one that is there"
    )


def test_folder_that_is_read_as_a_file_is_no_folder_to_write_to(folder):
    refused = run(*invoke.FLAGS, "--vocabulary=.", "--workdir=run")
    assert_refused(refused, ".: is a directory; name another, or change what is there")


@pytest.mark.parametrize("columns", ["0", "00"])
def test_terminal_of_no_columns_is_one_of_which_nothing_is_known(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        Terminal().print("line")
    assert out.getvalue() == "line\n"


def test_program_whose_reader_is_gone_goes_on():
    lines = (
        "import sys",
        "from experiments.cli.terminal import Terminal",
        "terminal = Terminal()",
        "for _ in range(10_000): terminal.print('line :100: [x]')",
        "print('done', file=sys.stderr)",
    )
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=invoke.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line :100: [x]\n"
        process.stdout.close()
        assert process.stderr.read() == "done\n"
        assert process.wait() == 0


def test_terminal_that_cannot_print_goes_silent():
    with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
        terminal = Terminal()
        with terminal.status("working"):
            terminal.print("line")
        terminal.print("line")
        assert terminal.quiet


def test_brackets_in_what_is_being_done_are_no_markup():
    working: Any = Terminal().status("reading [v2]/[/x].txt")
    assert str(working.renderable.text) == "reading [v2]/[/x].txt"


def test_result_that_cannot_be_printed_is_an_error():
    with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
        with pytest.raises(OSError, match="standard output") as raised:
            write_out("result")
        assert raised.value.errno == errno.ENOSPC


def test_error_that_cannot_be_printed_is_told_by_the_status():
    with Path("/dev/full").open("w", buffering=1) as full, contextlib.redirect_stderr(full):
        with pytest.raises(SystemExit) as end:
            command_line.fail("a: is missing; name another")
        assert end.value.code == 2


def test_line_aside_is_not_among_the_results_where_standard_error_is_closed():
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(None):
        write_aside("words unknown to the model")
        write_out("text")
        with pytest.raises(SystemExit) as end:
            command_line.fail("a: is missing; name another")
    assert (out.getvalue(), end.value.code) == ("text\n", 2)


class Tty(io.StringIO):
    def isatty(self):
        return True


HOSTILE = "a\x1b]0;title\x07 b\u202ec \x9b31m é日\u200d👩\tend"
SHOWN = "a\\x1b]0;title\\x07 b\\u202ec \\x9b31m é日\u200d👩\tend"


@pytest.mark.parametrize(("stream", "told"), [(Tty, SHOWN), (io.StringIO, HOSTILE)])
def test_control_characters_are_escaped_on_a_terminal_and_exact_in_a_file(stream, told):
    out, err = stream(), stream()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        write_out(HOSTILE)
        with pytest.raises(SystemExit):
            command_line.fail(HOSTILE.replace("\t", " "))
    assert out.getvalue() == f"{told}\n"
    assert err.getvalue() == f"error: {told}\n".replace("\t", " ")


def test_control_characters_in_how_a_program_ended_are_escaped_on_a_terminal(monkeypatch):
    monkeypatch.setattr(Terminal, "is_terminal", True)

    def stop():
        end = ProgramEndError("saved in a\x1b[2J")
        end.is_error = False
        raise end

    assert run(program=program_that(stop)).out == "saved in a\\x1b[2J\n"


def test_control_characters_in_lines_and_tables_are_escaped_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out, table = Tty(), Table("\x1b[2Jtitle")
    table.add_row("cell\u202e")
    with contextlib.redirect_stdout(out):
        Terminal().print("line\x1b[2J")
        Terminal().print(table)
    assert "\x1b[2J" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert all(x in out.getvalue() for x in ("line\\x1b[2J", "\\x1b[2Jtitle", "cell\\u202e"))
