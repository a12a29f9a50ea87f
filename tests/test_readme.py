"""What the README promises is what there is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zaremba_jax.config
from zaremba_jax.config import override

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = (
    "ptb",
    "reproduce",
    "ensemble",
    "sweep",
    "report",
    "generate",
    "score",
    "export",
    "ablation",
    "benchmark",
    "compile_for",
)
LIST_FLAGS = """
import importlib, sys
from absl import flags
for program in sys.argv[1:]:
    importlib.import_module("experiments." + program)
    names = [
        flag.name
        for module, defined in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith("experiments")
        for flag in defined
    ]
    print(*names)
    for name in set(names):  # some programs give one name to flags of their own
        delattr(flags.FLAGS, name)
    for module in [module for module in sys.modules if module.startswith("experiments")]:
        del sys.modules[module]
"""


def test_every_flag_of_the_programs_is_described():
    listed = [sys.executable, "-c", LIST_FLAGS, *PROGRAMS]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    defined = set(done.stdout.split())
    described = set(re.findall(r"`--(\w+)`", README))
    assert defined == described


def test_library_example_runs_as_written(monkeypatch, capsys):
    tiny = override(
        zaremba_jax.config.QUICK, hidden_size=4, layers=1, epochs=1, batch_size=400, unroll=50
    )
    monkeypatch.setattr(zaremba_jax.config, "QUICK", tiny)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    measured, floor = map(float, capsys.readouterr().out.split())
    assert measured > floor > 1


def test_ci_runs_the_test_command_as_written():
    command = "grep '^python3 -m venv .* pytest$' README.md"
    assert command in (ROOT / ".ci" / "run").read_text()
    found = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert len(found.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_table_of_speed_is_what_the_benchmark_recorded(name):
    path = ROOT / "experiments" / "results" / f"benchmark-{name}.json"
    results = json.loads(path.read_text())
    (header,) = (line for line in README.splitlines() if line.startswith("| two CPU cores"))
    column = [cell.strip(" `") for cell in header.split("|")].index(name)
    for record in results["contenders"]:
        builder, precision = record["contender"].split(":")
        (row,) = (
            line for line in README.splitlines() if line.startswith(f"| `{builder}` | {precision}")
        )
        lower, median, upper = record["ratio"]
        expected = f"{median:.2f} ({lower:.2f}-{upper:.2f})"
        if record is results["contenders"][0]:
            expected = f"{record['step_ms'][1]:,.0f} ms, {record['of_floor'][1]:.0%} of floor"
        assert row.split("|")[column].strip() == expected


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_every_file_that_is_linked_to_exists(path):
    assert (ROOT / path).exists()
