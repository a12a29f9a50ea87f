"""Averages of the models behind the table, from the nats that their runs left."""

import glob
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reports.records import Record, by_seed, records_of
from experiments.reports.summary import sizes_for, summarize_mixtures
from experiments.table1.jobs import file_name
from experiments.training.identity import canonical_config
from experiments.training.written_files import write_json
from zaremba_jax.config import Config
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity
from zaremba_jax.json_text import read_json_object


def seeds_without_nll(config: Config, seeds: int, records: list[Record], folder: Path) -> list[int]:
    """The seeds with recorded perplexities but without nats that `mix` could average.

    Arguments as for `jobs.remaining_jobs`.
    """
    wanted = range(config.seed, config.seed + seeds)
    recorded = by_seed(records_of(config, records)).keys()
    return sorted((recorded & wanted) - read_nll(config, folder, records).keys())


def read_nll(
    config: Config, folder: Path, records: list[Record]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Validation and test nats of every token, by seed, for the models of a configuration.

    Whatever its seed, its models' folders are those in `folder`, one per job. A model whose seed
    has a record of other perplexities is left out: the recorded one was trained elsewhere.

    Raises:
      InputError: a file is damaged.
    """
    nll: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for path in sorted(folder.glob(f"{glob.escape(file_name(config))}-seed*/nll.npz")):
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                pairs = zip(arrays["valid"], arrays["test"], strict=True)
                nll |= dict(zip(arrays["seeds"].tolist(), pairs, strict=True))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: is damaged ({error}); remove it, and also the record of that run to"
                " evaluate it again"
            ) from None
    recorded: dict[int, list[float]] = {}
    for record in records_of(config, records):
        for seed, (_, test) in record.perplexities.items():
            recorded.setdefault(seed, []).append(test)

    def is_of_a_record(seed: int, test: np.ndarray) -> bool:
        # A GPU gives other digits than a CPU; another model differs by far more.
        figures = recorded.get(seed, [])
        return any(math.isclose(perplexity(test), x, rel_tol=1e-4) for x in figures) or not figures

    return {seed: pair for seed, pair in nll.items() if is_of_a_record(seed, pair[1])}


def mix(
    config: Config, corpus: Corpus, folder: Path, sizes: list[int], records: list[Record]
) -> dict[str, Any] | None:
    """The record of the mixtures of all models of a configuration that were run in a folder.

    It is by `summarize_mixtures`, for as many models as `sizes` and as there are, with the seeds;
    None if there are fewer than two models. `records` are as for `read_nll`.
    """
    nll = read_nll(config, folder, records)
    if len(nll) < 2:
        return None
    seeds = sorted(nll)
    valid, test = (np.stack([nll[seed][split] for seed in seeds]) for split in (0, 1))
    averaged = sizes_for(sizes, len(seeds))
    summary = summarize_mixtures([canonical_config(config)], corpus, valid, test, averaged)
    return summary | {"seeds": seeds}


def mixtures_path(results: Path, config: Config) -> Path:
    """The path of the record of `mix`."""
    return results / f"{file_name(config)}-mixtures.json"


def read_mixtures(results: Path, config: Config) -> dict[str, Any] | None:
    """The record of `mix` in a folder, if there is one."""
    path = mixtures_path(results, config)
    try:
        if not path.exists():
            return None
        mixtures = read_json_object(path)
        _ = mixtures["seeds"], mixtures["mixtures"]
        return mixtures
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove it to have it rewritten") from None


def write_mixtures(results: Path, config: Config, mixtures: dict[str, Any] | None) -> list[int]:
    """Writes a record of `mix`, unless the one there is of a model that the new one lacks.

    Returns:
      The seeds of that one; none if it was replaced, or nothing was to be written.
    """
    existing = read_mixtures(results, config)
    if not mixtures:
        return []
    if existing is not None and not set(mixtures["seeds"]) >= set(existing["seeds"]):
        return existing["seeds"]
    write_json(mixtures_path(results, config), mixtures)
    return []
