import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    {"array_types", "precision"},
    {"config"},
    {"corpus"},
    {"ptb", "toy_corpus"},
    {"cells"},
    {"lstm_kernel"},
    {"regularizers"},
    {"rnn"},
    {"softmax"},
    {"model"},
    {"optimizer"},
    {"train"},
    {"evaluate"},
    {"checkpoint"},
]
LIBRARY = sorted((ROOT / "zaremba_jax").glob("*.py"))


def imported(path):
    """The absolute names of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(module):
    (place,) = (place for place, row in enumerate(ORDER) if module in row)
    return place


def test_every_module_of_the_library_has_its_place_in_the_order():
    modules = {path.stem for path in LIBRARY if path.stem != "__init__"}
    assert modules == set().union(*ORDER)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_library_imports_only_modules_above_and_never_programs_or_flags(path):
    names = list(imported(path))
    assert not [name for name in names if name.split(".")[0] in ("experiments", "absl", "tests")]
    inside = [name.split(".")[1] for name in names if name.startswith("zaremba_jax.")]
    if path.stem != "__init__":
        assert all(rank(module) < rank(path.stem) for module in inside)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_library_never_prints(path):
    calls = (
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    )
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_no_private_jax_api_is_used():
    for folder in ("zaremba_jax", "experiments", "tests"):
        for path in (ROOT / folder).glob("*.py"):
            private = [
                name for name in imported(path) if "._src" in name or ".interpreters" in name
            ]
            assert not private, f"{path}: {private}"
