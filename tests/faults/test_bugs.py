"""A fault of the code is never shown as a mistake of the user."""

import ast
import pickle
from functools import partial

import invoke
import pytest
from faults.child import break_function
from faults.forked import fork
from invoke import ROOT, write_texts
from model_examples import make, put_model

from experiments.training.run_folder import Workdir
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import DownloadError, InputError, MissingFileError

# Programs, the function that they compute with and that is broken, and their arguments.
PLANTED = {
    "training": ("experiments.ptb", "train.train_windows", invoke.FLAGS),
    "evaluation": ("experiments.ptb", "evaluate.text_nll", (*invoke.FLAGS, "--workdir=other")),
    "scoring": ("experiments.score", "evaluate.text_nll", ("--workdir=run", "test.txt")),
    "generation": ("experiments.generate", "inference.generation.generate", ("--workdir=run",)),
}
FAULTS = {"ValueError", "TypeError", "RuntimeError", "Exception", "BaseException"}
# What a compiler or a device raises while a candidate kernel is tried can be anything.
CATCHES_EVERYTHING = [  # the second raises it again, unless the run removed what was read
    "experiments/training/kernel_choice.py",
    "experiments/training/unfinished_runs.py",
]
FEW = 5


@pytest.fixture(scope="module")
def broken_programs(tmp_path_factory):
    """How every program in `PLANTED` ends, run side by side."""
    folder = tmp_path_factory.mktemp("broken")
    write_texts(folder)
    words = Vocabulary(("<eos>", *invoke.WORDS))
    put_model(Workdir(folder / "run").model, make(vocabulary=words))
    started = {
        case: fork(program, *flags, folder=folder, befalls=partial(break_function, function))
        for case, (program, function, flags) in PLANTED.items()
    }
    return {case: process.end() for case, process in started.items()}


@pytest.mark.parametrize("case", PLANTED)
def test_shape_error_inside_a_program_keeps_its_traceback_and_is_no_mistake(broken_programs, case):
    status, _, error = broken_programs[case]
    assert status == 1, error
    assert error.startswith("Traceback (most recent call last):")
    assert "in broken" in error
    assert "\nValueError: operands could not be broadcast together" in error


def caught(clause):
    """The names of the exceptions that an `except` clause lists."""
    listed = ast.walk(clause.type) if clause.type else [ast.Name("BaseException")]
    return {node.id for node in listed if isinstance(node, ast.Name)}


@pytest.mark.parametrize("package", ["zaremba_jax", "experiments"])
def test_what_bugs_raise_is_caught_around_a_few_statements_only(package):
    wide, catching_everything = [], []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Try):
                continue
            names = set().union(*map(caught, node.handlers))
            within = sum(isinstance(x, ast.stmt) for part in node.body for x in ast.walk(part))
            if names & FAULTS and within > FEW:
                wide.append(f"{path}:{node.lineno}: {within} statements")
            if names & {"Exception", "BaseException"}:
                catching_everything.append(str(path.relative_to(ROOT)))
    assert not wide
    assert catching_everything == [x for x in CATCHES_EVERYTHING if x.startswith(package)]


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (InputError, (ValueError,)),
        (MissingFileError, (InputError, FileNotFoundError)),
        (DownloadError, (InputError, ConnectionError)),
    ],
)
def test_mistake_can_be_caught_as_what_it_is_and_says_the_same_in_another_process(error, kinds):
    raised = error("a: is missing; name another")
    assert all(isinstance(raised, kind) for kind in kinds)
    there = pickle.loads(pickle.dumps(raised))
    assert (type(there), str(there)) == (error, "a: is missing; name another")
