"""What a folder or a file holds that a comparison can show."""

import glob
import os
from pathlib import Path

from experiments.comparisons.lines import (
    Line,
    lines_of_ablation,
    lines_of_mixtures,
    lines_of_sweep,
)
from experiments.reports.records import Record, read_record, reading
from experiments.training.history import read_lines
from experiments.training.run_folder import Workdir
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import read_json_object

_OWN = ("config.json", "summary.json", "results.json")  # of a run, averages or an ablation


def with_runs_inside(paths: dict[str, str]) -> dict[str, str]:
    """The paths by name; of a folder of runs, as `experiments.reproduce` makes one, those runs."""
    found = {}
    for name, path in paths.items():
        own = [file for file in _OWN if os.path.exists(os.path.join(path, file))]
        inside = [] if own else sorted(glob.glob("*/config.json", root_dir=path))
        runs = [os.path.dirname(config) for config in inside]
        found |= {os.path.join(name, run): os.path.join(path, run) for run in runs} or {name: path}
    return found


def read_source(path: Path, name: str) -> Record | list[Line]:
    """A run, or the lines of a sweep, of averages or of an ablation.

    Raises:
      InputError: it holds none of them, an unfinished sweep, or something damaged.
    """
    workdir = Workdir(path)
    with reading(workdir):
        lines = _lines(workdir, name)
    if lines == []:
        raise InputError(f"{path}: holds an unfinished sweep; give its command again")
    return read_record(workdir) if lines is None else lines


def _lines(workdir: Workdir, name: str) -> list[Line] | None:
    """Those of what is no single run; an unfinished sweep has none."""
    path, ablation = workdir.path, workdir.path / "results.json"
    averages = path if path.suffix == ".json" else workdir.summary
    if not workdir.config.exists():  # else it is a run, whatever else lies beside it
        if ablation.exists():
            return lines_of_ablation(name, read_json_object(ablation))
        return lines_of_mixtures(name, read_json_object(averages)) if averages.exists() else None
    if "vary" not in workdir.read_config()[1]:
        return None
    if not workdir.summary.exists():
        return []
    summary = read_json_object(workdir.summary)
    return lines_of_sweep(name, summary, read_lines(workdir.metrics.read_bytes()))
