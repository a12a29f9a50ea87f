"""The averages behind the table: over all models of a configuration that were run in a folder."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.mixtures import sizes_for, summarize_mixtures
from experiments.reports.records import model_name
from experiments.training.identity import canonical_config
from experiments.training.run_folder import write_json
from zaremba_jax.config import Config
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError


def read_nll(config: Config, folder: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Validation and test nats of every token, for the models of a configuration, by seed.

    Args:
      config: of the models, whatever its seed.
      folder: holds one folder per job.

    Raises:
      InputError: a file is damaged.
    """
    nll: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for path in sorted(folder.glob(f"{model_name(config)}-seed*/nll.npz")):
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                pairs = zip(arrays["valid"], arrays["test"], strict=True)
                nll |= dict(zip(arrays["seeds"].tolist(), pairs, strict=True))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: is damaged ({error}); remove it, and also the record of that run to"
                " evaluate it again"
            ) from None
    return nll


def mix(config: Config, corpus: Corpus, folder: Path, sizes: list[int]) -> dict[str, Any] | None:
    """The record of the mixtures of all models of a configuration that were run in a folder.

    Args:
      config: of the models.
      corpus: the texts they were evaluated on.
      folder: holds one folder per job.
      sizes: how many to average, as far as there are that many.

    Returns:
      The record by `summarize_mixtures`, with the seeds; None if there are fewer than two models.

    Raises:
      InputError: a file is damaged.
    """
    nll = read_nll(config, folder)
    if len(nll) < 2:
        return None
    seeds = sorted(nll)
    valid, test = (np.stack([nll[seed][split] for seed in seeds]) for split in (0, 1))
    averaged = sizes_for(sizes, len(seeds))
    summary = summarize_mixtures(canonical_config(config), corpus, valid, test, averaged)
    return summary | {"seeds": seeds}


def mixtures_path(results: Path, config: Config) -> Path:
    """The path of the record of `mix`."""
    return results / f"{model_name(config)}-mixtures.json"


def read_mixtures(results: Path, config: Config) -> dict[str, Any] | None:
    """The record of `mix` in a folder, if there is one.

    Raises:
      InputError: it is damaged.
    """
    path = mixtures_path(results, config)
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); remove it to have it rewritten") from None


def write_mixtures(results: Path, config: Config, mixtures: dict[str, Any] | None) -> None:
    """Writes a record of `mix`, unless there is already one of more models."""
    existing = read_mixtures(results, config)
    if mixtures and (existing is None or len(mixtures["seeds"]) >= len(existing["seeds"])):
        write_json(mixtures_path(results, config), mixtures)
