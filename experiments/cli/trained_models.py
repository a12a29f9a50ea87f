"""Finds trained models where runs left them."""

from collections import Counter
from pathlib import Path

from experiments.training.run_folder import Workdir
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_file import (
    FOLDER_CONFIG,
    FOLDER_MODEL,
    FOLDER_VOCABULARY,
    load_folder,
    load_model,
)
from zaremba_jax.model import Model


def load_models(paths: list[str]) -> list[Model]:
    """The models in folders and files; for an ensemble's folder, all its members.

    Raises:
      InputError: no path is given, a run has written no model yet, a file is no model, or is named
        twice, or the vocabularies differ.
      MissingFileError: a path holds no model.
    """
    files = [file for path in paths for file in _model_files(Path(path))]
    if not files:
        raise InputError("--workdir: names no model; give the folder of a finished run")
    counts = Counter(file.resolve() for file in files)
    if twice := [file for file in files if counts[file.resolve()] > 1]:
        raise InputError(f"--workdir: names {twice[0]} twice; name each model once")
    models = list(map(load, files))
    first = models[0].vocabulary
    for file, model in zip(files, models, strict=True):
        if model.vocabulary != first:
            raise InputError(
                f"{file}: its vocabulary is not that of {files[0]}; name models that were trained"
                " on the same text"
            )
    return models


def single_model(paths: list[str], flag: str) -> Path:
    """The only model that a flag names, for `load`.

    Raises:
      InputError, MissingFileError: as for `load_models`, or it names several.
    """
    files = [file for path in paths for file in _model_files(Path(path))]
    if len(files) != 1:
        raise InputError(
            f"--{flag}={','.join(paths)}: has {len(files)} models; name one file of members/"
        )
    return files[0]


def load(path: Path) -> Model:
    """The model in a file, or in a folder that was exported."""
    return load_model(path) if path.is_file() else load_folder(path)


def parts(path: Path) -> list[Path]:
    """The files that `load` reads."""
    names = (FOLDER_MODEL, FOLDER_CONFIG, FOLDER_VOCABULARY)
    return [path] if path.is_file() else [path / name for name in names]


def _model_files(path: Path) -> list[Path]:
    if path.is_file() or (path / FOLDER_VOCABULARY).exists():
        return [path]
    workdir = Workdir(path)
    if workdir.model.exists():
        return [workdir.model]
    if members := sorted(workdir.members.glob("*.safetensors")):
        return members
    if workdir.summary.exists():
        raise InputError(
            f"{path}: holds the record of a finished run without its model; name the folder that"
            " it was trained in"
        )
    if workdir.config.exists():
        raise InputError(
            f"{path}: holds a run that has written no model yet; give its command again to"
            " finish it"
        )
    raise MissingFileError(
        f"{path}: holds no model; name the --workdir of a finished run of experiments.ptb or"
        " experiments.ensemble, or a .safetensors file"
    )
