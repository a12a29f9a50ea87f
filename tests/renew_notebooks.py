"""Runs the notebooks and keeps their outputs: `python tests/renew_notebooks.py`.

For those who read them without running them. With names, only the notebooks named.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "experiments" / "notebooks"
# The tag of cells for Colab only: they copy the repository, install packages, mount a Drive.
COLAB = "colab"


def execute(notebook: nbformat.NotebookNode, timeout: int | None = None) -> None:
    """Runs all cells but those for Colab, as in a clone: in the folder of the notebooks."""
    client = NotebookClient(
        notebook,
        timeout=timeout,
        resources={"metadata": {"path": str(FOLDER)}},
        skip_cells_with_tag=COLAB,
        record_timing=False,
        coalesce_streams=True,
    )
    # The kernel imports the clone as Jupyter's does, not by the path of this process.
    own = ("PYTHONPATH", "MPLBACKEND")
    client.execute(env={name: x for name, x in os.environ.items() if name not in own})


def renew(path: Path) -> None:
    """Replaces the outputs of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        renew(FOLDER / f"{name}.ipynb")
