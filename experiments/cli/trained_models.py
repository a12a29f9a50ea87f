"""Finds trained models where runs left them."""

from collections import Counter
from pathlib import Path

from experiments.cli.terminal import write_aside
from experiments.training.run_folder import Workdir
from experiments.training.unfinished_runs import is_unfinished, unfinished_models
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.interop.model_folder import (
    FOLDER_CONFIG,
    FOLDER_MODEL,
    FOLDER_VOCABULARY,
    load_folder,
)
from zaremba_jax.model import Model


def load_models(paths: list[str]) -> list[Model]:
    """The models in folders and files; for an ensemble's folder, all its members.

    A run that is not finished has the models of its newest checkpoint; standard error gets a line
    that says of which epoch.

    Raises:
      InputError: no path is given, a run has saved no model yet, a file is no model, or is named
        twice, or the vocabularies differ.
      MissingFileError: a path holds no model.
    """
    sources = _named(paths, "workdir")
    counts = Counter(source.resolve() for source in sources)
    if twice := [source for source in sources if counts[source.resolve()] > 1]:
        raise InputError(f"--workdir: names {twice[0]} twice; name each model once")
    models = []
    for source in sources:
        models += _load_all(source)[0]
        if models[-1].vocabulary != models[0].vocabulary:
            raise InputError(
                f"{source}: its vocabulary is not that of {sources[0]}; name models that were"
                " trained on the same text"
            )
    return models


def single_model(paths: list[str], flag: str) -> Path:
    """The only model that a flag names, for `load`: a file, or a folder.

    Raises:
      InputError, MissingFileError: as for `load_models`, or it names several.
    """
    sources = _named(paths, flag)
    if len(sources) != 1:
        raise InputError(
            f"--{flag}={','.join(paths)}: has {len(sources)} models; name one file of members/"
        )
    return sources[0]


def load(path: Path) -> Model:
    """The model in a file, in a folder that was exported, or of a run that is not finished.

    Raises:
      InputError: it cannot be read, or the run has several models.
    """
    return load_with_estimate(path)[0]


def load_with_estimate(path: Path) -> tuple[Model, dict[str, float]]:
    """As `load`, and of a run that is not finished the estimate of this model, by its name."""
    models, perplexities = _load_all(path)
    if len(models) > 1:
        raise InputError(
            f"{path}: has {len(models)} models and is not finished; give its command again to"
            " finish it, and name one file of members/"
        )
    return models[0], perplexities


def parts(path: Path) -> list[Path]:
    """The files that `load` reads of a model that no run writes any more.

    Raises:
      InputError: its run is not finished.
    """
    if path.is_file():
        return [path]
    if not _is_exported(path):
        raise InputError(
            f"{path}: is not finished, so that its model may change; write it to a file with"
            " experiments.export --to=model, and name that"
        )
    return [path / name for name in (FOLDER_MODEL, FOLDER_CONFIG, FOLDER_VOCABULARY)]


def _is_exported(path: Path) -> bool:
    return (path / FOLDER_VOCABULARY).exists()


def _load_all(source: Path) -> tuple[list[Model], dict[str, float]]:
    if source.is_file():
        return [load_model(source)], {}
    if _is_exported(source):
        return [load_folder(source)], {}
    unfinished = unfinished_models(Workdir(source))
    write_aside(unfinished.described)
    return unfinished.models, unfinished.perplexities


def _named(paths: list[str], flag: str) -> list[Path]:
    """What `_sources` finds for each of the paths that a flag names.

    Raises:
      InputError: there is none.
    """
    if not paths:
        raise InputError(f"--{flag}: names no model; give the folder of a run")
    return [source for path in paths for source in _sources(Path(path))]


def _sources(path: Path) -> list[Path]:
    """The files of a path's models; or the path itself, an exported folder or unfinished run."""
    workdir = Workdir(path)
    if path.is_file() or _is_exported(path) or is_unfinished(workdir):
        return [path]
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
            f"{path}: holds a run that has saved no model yet; wait for its first checkpoint, or"
            " give its command again"
        )
    raise MissingFileError(
        f"{path}: holds no model; name the --workdir of a run of experiments.ptb or"
        " experiments.ensemble, or a .safetensors file"
    )
