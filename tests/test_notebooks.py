"""Every notebook matches its script, says where it lives, runs to its end and shows its outputs."""

import json
import os
import re
import runpy
import shlex
import sys
import zipfile
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
import pytest
from invoke import SETTINGS, content, write_texts
from renew_notebooks import COLAB, execute

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "experiments" / "notebooks").glob("*.py"))
BY_NAME = {path.stem: path for path in SCRIPTS}
FIGURES = {"the_paper": 4, "train_on_colab": 1}
COMMAND = "jupytext --update --to ipynb experiments/notebooks/*.py"
RENEW = "python tests/renew_notebooks.py"
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>.*?```python\n(.*?)```.*</details>", re.S
)


def setup_arguments():
    """The arguments that setup.py passes to `setup`."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def cells(path):
    """Kind, source and tags of each cell."""
    return [
        (cell.cell_type, cell.source, cell.metadata.get("tags", []))
        for cell in jupytext.read(path).cells
    ]


def run(script, **parameters):
    """Executes a notebook, solutions of exercises included; returns all outputs.

    The parameters replace those of the cell tagged `parameters`.
    """
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assignments = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            names = set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE))
            assert parameters.keys() <= names
            cells.append(nbformat.v4.new_code_cell(assignments))
        cells += map(nbformat.v4.new_code_cell, SOLUTION.findall(cell.source))
    notebook.cells = cells
    execute(notebook, timeout=300)
    return [output for cell in cells for output in cell.get("outputs", [])]


def shown_text(outputs):
    plain = [output.get("text") or output.get("data", {}).get("text/plain") for output in outputs]
    return "\n".join(filter(None, plain))


def figures_of(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", BY_NAME)
def test_notebook_is_its_script(name):
    script = BY_NAME[name]
    assert cells(script.with_suffix(".ipynb")) == cells(script), f"run {COMMAND}"


@pytest.mark.parametrize("name", BY_NAME)
def test_notebook_has_the_outputs_of_one_run_from_first_cell_to_last(name):
    path = BY_NAME[name].with_suffix(".ipynb")
    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    ran = [cell for cell in code if COLAB not in cell.metadata.get("tags", [])]
    counts = [cell.execution_count for cell in ran]
    assert counts == list(range(1, len(ran) + 1)), f"run {RENEW}"
    assert not any(cell.outputs for cell in code if cell not in ran)
    outputs = [output for cell in ran for output in cell.outputs]
    assert figures_of(outputs) == FIGURES[name]
    assert all(cell.outputs for cell in ran if "!{" in cell.source)  # a program's
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warnings


@pytest.mark.parametrize("name", BY_NAME)
def test_outputs_are_small_and_tell_nothing_of_the_machine(name):
    path = BY_NAME[name].with_suffix(".ipynb")
    notebook = jupytext.read(path)
    assert path.stat().st_size < 400_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any("execution" in cell.metadata for cell in code)  # times
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output.get("data", {}).get("image/png", "") for output in outputs]
    assert max(map(len, pictures)) < 60_000
    shown = shown_text(outputs)
    assert not re.findall(r"(?<![\w.])/(?:root|home|tmp|work|usr|Users|content)\b", shown)
    assert not re.findall("words/s|[0-9] s(?:econds)?\\b", shown)


@pytest.mark.parametrize("name", BY_NAME)
def test_cells_are_short(name):
    for _, source, _ in cells(BY_NAME[name]):
        assert len(source.splitlines()) <= 20


@pytest.mark.parametrize("name", BY_NAME)
def test_notebook_asks_for_the_repository_unless_setup_names_it(name):
    source = setup_arguments()["url"] or ""
    form = f'SOURCE = "{source}"  # @param {{type:"string"}}'
    (cell,) = (cell for cell in cells(BY_NAME[name]) if "SOURCE =" in cell[1])
    assert form in cell[1].splitlines()


def test_pages_open_what_is_published_as_soon_as_setup_names_it():
    url = setup_arguments()["url"]
    pages = [ROOT / folder / "README.md" for folder in (".", "experiments", "zaremba_jax")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in (*pages, *SCRIPTS))
    assert "OWNER" not in text
    if url is None:
        assert "colab.research.google.com" not in text
        assert "git+http" not in text
    else:
        colab = url.replace("https://github.com", "https://colab.research.google.com/github")
        for name in BY_NAME:
            assert f"]({colab}/blob/main/experiments/notebooks/{name}.ipynb)" in text
        assert f"pip install -q 'zaremba-jax @ git+{url}'" in text


def test_notebooks_install_extras_that_there_are():
    extras = setup_arguments()["extras_require"]
    named = {"plots"}
    for script in SCRIPTS:
        (wanted,) = re.findall(r'pip install -q -e "\.\[(.*)\]"', script.read_text())
        named |= set(wanted.split(",")) - {"{ACCELERATOR}"}
    assert named | {"cuda", "tpu"} <= extras.keys()


def test_reference_has_the_commands_that_renew_the_notebooks():
    page = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert f".venv/bin/{COMMAND}\n.venv/bin/{RENEW}\n" in page


def fetch(source, content):
    """Runs the cell that fetches the repository, in a folder in place of Colab's."""
    (cell,) = {code for name in BY_NAME for _, code, _ in cells(BY_NAME[name]) if "CLONE" in code}
    *lines, last = cell.replace("/content", str(content)).splitlines()
    assert last == "%cd {CLONE}"
    exec("\n".join(lines), {"SOURCE": source})


def test_repository_is_cloned_once(tmp_path):
    address, clone = "https://example.org/some/name", tmp_path / "zaremba_jax"
    with mock.patch("subprocess.run", side_effect=lambda *_, **__: clone.mkdir()) as run_git:
        fetch(address, tmp_path)
        fetch(address, tmp_path)
    run_git.assert_called_once_with(["git", "clone", "-q", address, clone], check=True)


@pytest.mark.parametrize("top", ["", "zaremba_jax-main/"])
def test_repository_is_unpacked_from_a_zip_with_or_without_a_folder_at_its_top(top, tmp_path):
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr(f"{top}setup.py", "")
        archive.writestr(f"{top}experiments/ptb.py", "")
    for _ in range(2):
        fetch(str(tmp_path / "any.zip"), tmp_path)
        assert (tmp_path / "zaremba_jax" / "setup.py").exists()
        assert (tmp_path / "zaremba_jax" / "experiments" / "ptb.py").exists()


def test_an_empty_form_is_named():
    with pytest.raises(ValueError, match="SOURCE is empty"):
        fetch("", Path("/content"))


def test_training_runs_once_and_out_of_reach_of_an_interrupted_cell(tmp_path):
    sources = [code for _, code, _ in cells(BY_NAME["train_on_colab"]) if "def is_" in code]
    (starting,) = (code for _, code, _ in cells(BY_NAME["train_on_colab"]) if "def train" in code)
    names = {"WORKDIR": str(tmp_path), "FLAGS": [], "Path": Path, "os": os, "sys": sys}

    def run_cells():
        for source in (*sources, starting):
            exec(source, names)

    with mock.patch("subprocess.Popen") as start:
        start.return_value.poll.return_value = None
        run_cells()
        run_cells()
        assert start.call_count == 1
        assert start.call_args.kwargs["start_new_session"]
        start.return_value.poll.return_value = 0
        run_cells()  # it ended without results: it goes on
        assert start.call_count == 2
        summary = {"command": shlex.join(start.call_args.args[0])}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        run_cells()
        del names["run"]  # a new kernel
        run_cells()
        assert start.call_count == 2
        names["FLAGS"] = ["--epochs=9"]
        run_cells()
        assert start.call_count == 3
        assert "--epochs=9" in start.call_args.args[0]


def test_curve_is_drawn_of_whole_lines(tmp_path):
    (drawing,) = (code for _, code, _ in cells(BY_NAME["train_on_colab"]) if "def draw" in code)
    epoch = {"epoch": 1, "train_perplexity": 9.0, "valid_perplexity_estimate": 8.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(epoch) + '\n{"epo')  # as a kill may leave it
    names = {"WORKDIR": str(tmp_path), "Path": Path, "json": json, "plt": mock.MagicMock()}
    exec(f"{drawing}\ndraw()", names)
    assert names["plt"].plot.call_args.args[:2] == ([1], [8.0])


@pytest.mark.slow
def test_training_notebook_trains_once_and_writes(tmp_path):
    write_texts(tmp_path)
    texts = [f"--{split}_file={tmp_path / split}.txt" for split in ("train", "valid", "test")]
    flags = [*texts, *(f"--{name}={value}" for name, value in SETTINGS.items())]
    workdir = str(tmp_path / "on drive")
    script = BY_NAME["train_on_colab"]
    outputs = run(script, WORKDIR=workdir, FLAGS=flags, PROMPT="a b")
    shown = shown_text(outputs)
    assert "CpuDevice" in shown
    assert "this run" in shown
    assert figures_of(outputs) == FIGURES["train_on_colab"]
    assert "error" not in shown.lower()
    written = outputs[-1]["text"].split()
    assert written[:2] == ["a", "b"]
    assert len(written) > 50
    before = content(Path(workdir))
    assert shown_text(run(script, WORKDIR=workdir, FLAGS=flags, PROMPT="a b")) == shown
    assert content(Path(workdir)) == before


def test_three_exercises_have_their_solutions_folded_away():
    texts = [source for kind, source, _ in cells(BY_NAME["the_paper"]) if kind == "markdown"]
    exercises = [text for text in texts if re.search(r"\*\*Exercise \d\.\*\*", text)]
    assert len(exercises) == 3
    for exercise in exercises:
        assert SOLUTION.search(texts[texts.index(exercise) + 1])


@pytest.mark.slow
def test_the_papers_notebook_runs_solutions_included():
    sizes = {"TRAIN_TOKENS": 400, "HIDDEN_SIZE": 8, "EPOCHS": 2, "SEEDS": 1, "LONGEST_LAG": 5}
    outputs = run(BY_NAME["the_paper"], **sizes, MEMORY_STEPS=20)
    shown = shown_text(outputs)
    assert figures_of(outputs) == FIGURES["the_paper"]
    assert "(3," in shown
    assert "def lstm(" in shown
    assert "memory: tanh, step 20" in shown
    assert "non-recurrent dropout: 0." in shown  # by the solution of exercise 2
    assert "lstm: none, ordinary, non_recurrent; epoch 2" in shown


def test_prompt_reaches_the_program_as_it_is():
    (cell,) = (code for _, code, _ in cells(BY_NAME["train_on_colab"]) if "how = " in code)
    (line,) = (line for line in cell.splitlines() if line.startswith("how"))
    names = {"WORKDIR": "on drive", "PROMPT": 'he said "`x`"', "shlex": shlex}
    exec(line, names)
    assert shlex.split(names["how"])[:2] == ["--workdir=on drive", '--prompt=he said "`x`"']
