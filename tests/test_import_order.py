import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    {"array_types", "errors", "whole_files"},
    {"config"},
    {"data.text_files", "ops.products"},
    {"data.units"},
    {"data.vocabulary"},
    {"data.corpus"},
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
    {"parallel.members"},
    {"checkpoint"},
    {"interop.flax_sequences", "interop.flax_weights"},
    {"interop.flax_modules"},
    {"interop.model_file"},
    {"inference.gates", "inference.generation", "interop.stablehlo", "interop.torch_weights"},
    {"inference.dynamic_evaluation", "inference.independent_lines", "inference.neural_cache"},
    {"inference.prompts", "inference.text_scoring"},
]
PACKAGE = ROOT / "zaremba_jax"
LIBRARY = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """The absolute names of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports must be absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(path):
    """A module's name inside the package, as in `kernels.lstm`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def top(module):
    """The package that a name is imported from."""
    return module.split(".")[0]


def entry(module):
    """The entry of `ORDER` for a module, or for the module that a name is imported from."""
    (match,) = (item for row in ORDER for item in row if f"{module}.".startswith(f"{item}."))
    return match


def rank(module):
    (index,) = (index for index, row in enumerate(ORDER) if entry(module) in row)
    return index


def test_every_module_of_the_library_has_its_place_in_the_order():
    modules = {entry(name(path)) for path in LIBRARY if path.stem != "__init__"}
    assert modules == set().union(*ORDER)


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_imports_only_modules_above_and_never_programs_or_flags(path):
    modules = list(imported(path))
    assert not [module for module in modules if top(module) in ("experiments", "absl", "tests")]
    inside = [module.split(".", 1)[1] for module in modules if top(module) == "zaremba_jax"]
    if path.stem != "__init__":
        assert all(rank(module) < rank(name(path)) for module in inside)


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_never_prints(path):
    calls = (
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    )
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
