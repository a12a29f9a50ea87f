"""Imports run one way: the rules of the rooms, and the order of the library's modules in them."""

import ast
import tomllib
from pathlib import Path

import pytest
from invoke import start_python

ROOT = Path(__file__).parent.parent
ORDER = [
    {"array_types", "errors", "whole_files"},
    {"limits", "json_text", "ops.varying"},
    {"config"},
    {"presets", "estimates"},
    {"data.text_files", "data.partial_folders", "data.hidden_markov", "ops.products"},
    {"data.units"},
    {"data.vocabulary"},
    {"data.corpus", "data.vocabulary_files"},
    {"data.windows", "data.encoding"},
    {"data.published", "data.toy_corpus", "data.loader"},
    {"cells"},
    {"kernels.tiles"},
    {"kernels.lstm", "kernels.any_cell"},
    {"kernels.pallas_tpu"},
    {"kernels.implementations"},
    {"regularizers"},
    {"rnn"},
    {"ops.softmax", "ops.embedding"},
    {"model"},
    {"optimizer", "parallel.streams"},
    {"train"},
    {"evaluate"},
    {"ensemble"},
    {"parallel.mesh"},
    {"parallel.data_parallel"},
    {"parallel.members"},
    {"checkpoint"},
    {"interop.flax_sequences", "interop.flax_weights"},
    {"interop.flax_modules"},
    {"interop.model_card"},
    {"interop.model_file"},
    {"interop.model_folder"},
    {"inference.gates", "inference.generation", "interop.stablehlo", "interop.torch_weights"},
    {"inference.dynamic_evaluation", "inference.independent_lines", "inference.neural_cache"},
    {"inference.prompts", "inference.text_scoring"},
    {"inference.trained_model"},
]
# Those of the programs; the rooms of a row do not import each other.
ROOMS = [
    {"endings"},
    {"training"},
    {"cli", "reports", "compilers"},
    {"ablations", "benchmarks", "table1"},
    {"comparisons"},
]
RANKS = {name: rank for rank, row in enumerate(ROOMS) for name in row}


def imported(path):
    """The absolute names of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports must be absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(path):
    """A module's name, as in `zaremba_jax.kernels.lstm`; a package's is that of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if path.stem == "__init__" else parts)


def room(module):
    """The first part of a name inside its package: that of a folder, or of a module at the top."""
    return f"{module}..".split(".")[1]


PATHS = {
    dotted(path): path
    for package in ("zaremba_jax", "experiments")
    for path in sorted((ROOT / package).rglob("*.py"))
}
LIBRARY = [module for module in PATHS if module.split(".")[0] == "zaremba_jax"]
MODULES = [module for module in LIBRARY if PATHS[module].stem != "__init__"]
PROGRAMS = {
    module
    for module, path in PATHS.items()
    if path.parent == ROOT / "experiments" and path.stem != "__init__"
}


def module_of(name):
    """The module of ours that an imported name comes from; "" if it is not ours."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in PATHS), "")


IMPORTS = {
    module: {module_of(name) for name in imported(path)} - {""} for module, path in PATHS.items()
}


def importers(condition):
    """The modules that import one for which the condition is true."""
    return {module for module in PATHS if any(map(condition, IMPORTS[module]))}


def test_library_imports_neither_programs_nor_flags_nor_tests():
    for module in LIBRARY:
        packages = {name.split(".")[0] for name in imported(PATHS[module])}
        assert not packages & {"experiments", "absl", "tests"}, module


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ("data", {"config", "array_types", "errors", "json_text", "limits", "whole_files"}),
        ("ops", {"config", "array_types", "errors"}),
        ("cells", {"config", "array_types", "ops"}),
        ("kernels", {"config", "array_types", "ops", "cells"}),
    ],
)
def test_room_imports_only_itself_and_what_lies_below(own, others):
    modules = [module for module in MODULES if room(module) == own]
    below = {room(name) for module in modules for name in IMPORTS[module]}
    assert modules
    assert below <= {own} | others


@pytest.mark.parametrize("leaf", ["inference", "interop"])
def test_only_the_front_door_of_the_library_imports_its_leaves(leaf):
    inside = importers(lambda module: module in LIBRARY and room(module) == leaf) & {*LIBRARY}
    # "" is zaremba_jax/__init__.py; a leaf may use the other.
    assert {room(module) for module in inside} <= {"inference", "interop", ""}


def test_front_door_of_the_library_is_for_users_only():
    assert "zaremba_jax" not in set().union(*IMPORTS.values())


def test_nobody_imports_a_program():
    assert len(PROGRAMS) > 10
    assert not importers(PROGRAMS.__contains__)


def test_every_room_of_the_programs_has_its_place_in_the_order():
    rooms = {path.parent.name for path in (ROOT / "experiments").glob("*/*.py")}
    assert rooms - {"notebooks"} == RANKS.keys()


@pytest.mark.parametrize(
    "module", [name for name in PATHS if name.startswith("experiments.") and room(name) in RANKS]
)
def test_room_of_the_programs_imports_only_those_below(module):
    names = [name for name in IMPORTS[module] if name.startswith("experiments.")]
    own = RANKS[room(module)]
    assert all(room(name) == room(module) or RANKS[room(name)] < own for name in names)


def test_catching_errors_of_users_takes_no_training():
    reached, ahead = set(), {"experiments.cli.program"}
    while ahead:
        reached |= ahead
        ahead = set().union(*(IMPORTS[module] for module in ahead)) - reached
    rooms = {room(module) for module in reached if module.startswith("experiments.")}
    assert rooms == {"cli", "endings"}


def test_programs_start_without_the_modules_that_take_long_and_few_use(tmp_path):
    slow = {"flax.nnx", "jax.experimental.pallas.tpu", "matplotlib", "tensorboardX", "wandb"}
    code = f"import sys, experiments.ptb; print(sorted({slow} & sys.modules.keys()))"
    with start_python("-c", code, cwd=tmp_path) as process:
        assert process.communicate(timeout=100) == ("[]\n", "")


@pytest.mark.slow
def test_tests_that_run_on_mutants_start_no_device_while_they_are_collected():
    """For mutmut forks from a process that has collected them, and what has started XLA hangs."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutmut"]
    files = settings["pytest_add_cli_args_test_selection"]
    collect = ("-m", "pytest", "-n", "0", "--collect-only", "-qqq", "-p", "no:cacheprovider")
    with start_python(*collect, *files, cwd=ROOT, JAX_PLATFORMS="absent") as process:
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out


def rank(module):
    """The row of `ORDER` that has the module."""
    (index,) = (index for index, row in enumerate(ORDER) if module.split(".", 1)[1] in row)
    return index


def test_every_module_of_the_library_has_its_place_in_the_order():
    assert {module.split(".", 1)[1] for module in MODULES} == set().union(*ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_those_before_it_in_the_order(module):
    assert all(rank(name) < rank(module) for name in IMPORTS[module])


@pytest.mark.parametrize("module", LIBRARY)
def test_library_never_prints(module):
    nodes = ast.walk(ast.parse(PATHS[module].read_text()))
    calls = (node.func for node in nodes if isinstance(node, ast.Call))
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_no_private_jax_api_is_used():
    for folder in ("zaremba_jax", "experiments", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            private = [
                module
                for module in imported(path)
                if "._src" in module or ".interpreters" in module
            ]
            assert not private, f"{path}: {private}"
