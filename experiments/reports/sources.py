"""What a folder or a file holds that a comparison can show."""

from pathlib import Path
from typing import Any

from experiments.reports.comparison import (
    Line,
    lines_of_ablation,
    lines_of_mixtures,
    lines_of_sweep,
)
from experiments.reports.records import Record, read_record
from experiments.training.history import read_lines
from experiments.training.run_folder import Workdir
from zaremba_jax.errors import InputError
from zaremba_jax.json_text import parse_json_object


def read_source(path: Path, name: str) -> Record | list[Line]:
    """A run, or the lines of a sweep, of averages or of an ablation.

    Raises:
      InputError: it holds none of them, an unfinished sweep, or something damaged.
    """
    workdir, ablation = Workdir(path), path / "results.json"
    averages = path if path.suffix == ".json" else workdir.summary
    try:
        if ablation.exists():
            return lines_of_ablation(name, _read(ablation))
        if workdir.config.exists() and "vary" in workdir.read_config()[1]:
            return _sweep(workdir, name)
        if not workdir.config.exists() and averages.exists():
            return lines_of_mixtures(name, _read(averages))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if not workdir.config.exists():
            raise InputError(f"{path}: holds no run; name the --workdir of one") from None
        raise InputError(
            f"{path}: holds a damaged record ({error}); give the command of that run again, which"
            " writes it anew, or leave it out"
        ) from None
    return read_record(workdir)


def _sweep(workdir: Workdir, name: str) -> list[Line]:
    if not workdir.summary.exists():
        raise InputError(f"{workdir.path}: holds an unfinished sweep; give its command again")
    history = read_lines(workdir.metrics.read_bytes())
    return lines_of_sweep(name, _read(workdir.summary), history)


def _read(path: Path) -> dict[str, Any]:
    return parse_json_object(path.read_text())
