"""Finds trained models where runs left them."""

from collections import Counter
from pathlib import Path

from experiments.training.run_folder import Workdir
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_file import FOLDER_VOCABULARY, load_folder, load_model
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
    models = [load_model(file) if file.is_file() else load_folder(file) for file in files]
    first = models[0].vocabulary
    for file, model in zip(files, models, strict=True):
        if model.vocabulary != first:
            raise InputError(
                f"{file}: its vocabulary is not that of {files[0]}; name models that were trained"
                " on the same text"
            )
    return models


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
