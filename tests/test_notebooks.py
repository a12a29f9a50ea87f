"""Every notebook matches its script, says where it lives, and runs from first cell to last."""

import os
import re
import runpy
import sys
import zipfile
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
import pytest
from invoke import SETTINGS, write_texts
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "experiments" / "notebooks").glob("*.py"))
BY_NAME = {path.stem: path for path in SCRIPTS}
COMMAND = "jupytext --update --to ipynb experiments/notebooks/*.py"
# The tag of cells for Colab only: they copy the repository, install packages, mount a Drive.
COLAB = "colab"


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


def run(script, cwd, **parameters):
    """Executes a notebook except for what only Colab can run; returns all outputs.

    The parameters replace those of the cell tagged `parameters`.
    """
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assignments = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    runnable = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if COLAB in tags:
            continue
        runnable.append(cell)
        if "parameters" in tags:
            names = set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE))
            assert parameters.keys() <= names
            runnable.append(nbformat.v4.new_code_cell(assignments))
    notebook.cells = runnable
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": path,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(cwd)}})
    client.execute(env=env)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def shown_text(outputs):
    plain = [output.get("text") or output.get("data", {}).get("text/plain") for output in outputs]
    return "\n".join(filter(None, plain))


def figures_of(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", BY_NAME)
def test_notebook_is_its_script_without_outputs(name):
    script = BY_NAME[name]
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert cells(script.with_suffix(".ipynb")) == cells(script), f"run {COMMAND}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


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
    (source,) = (code for _, code, _ in cells(BY_NAME["train_on_colab"]) if "def train" in code)
    names = {"WORKDIR": str(tmp_path), "FLAGS": []}
    with mock.patch("subprocess.Popen") as start:
        start.return_value.poll.return_value = None
        exec(source, names)
        exec(source, names)
        assert start.call_count == 1
        assert start.call_args.kwargs["start_new_session"]
        start.return_value.poll.return_value = 0
        exec(source, names)
        assert start.call_count == 2


@pytest.mark.slow
def test_training_notebook_trains_resumes_and_writes(tmp_path):
    write_texts(tmp_path)
    texts = [f"--{split}_file={tmp_path / split}.txt" for split in ("train", "valid", "test")]
    flags = [*texts, *(f"--{name}={value}" for name, value in SETTINGS.items())]
    workdir = str(tmp_path / "on drive")
    script = BY_NAME["train_on_colab"]
    outputs = run(script, ROOT, WORKDIR=workdir, FLAGS=flags, PROMPT="a b")
    shown = shown_text(outputs)
    assert "CpuDevice" in shown
    assert re.search(rf"^{SETTINGS['epochs']}/{SETTINGS['epochs']} ", shown, re.MULTILINE)
    assert f"resuming {workdir} after epoch {SETTINGS['epochs']}" in shown
    assert figures_of(outputs) > 0
    assert "error" not in shown.lower()
    written = outputs[-1]["text"].split()
    assert written[:2] == ["a", "b"]
    assert len(written) > 50


@pytest.mark.slow
def test_the_papers_notebook_runs_and_counts_l_plus_1():
    sizes = {"TRAIN_TOKENS": 400, "HIDDEN_SIZE": 8, "EPOCHS": 2, "SEEDS": 1, "LONGEST_LAG": 5}
    outputs = run(BY_NAME["the_paper"], ROOT, **sizes)
    shown = shown_text(outputs)
    assert figures_of(outputs) == 3
    assert "(3," in shown
    assert "def lstm(" in shown
    assert "lstm: none, ordinary, non_recurrent; epoch 2" in shown
