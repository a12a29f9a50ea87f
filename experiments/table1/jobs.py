"""The runs behind the table: what is left to train, how it is recorded, and their averages."""

import dataclasses
import glob
import math
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.reports.records import Record, by_seed, model_name, records_of
from experiments.reports.summary import sizes_for, summarize_mixtures
from experiments.training.environment import environment
from experiments.training.identity import canonical_config
from experiments.training.run import Run
from experiments.training.run_folder import Workdir, shortened
from experiments.training.written_files import write_arrays, write_json, write_text
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity
from zaremba_jax.json_text import read_json_object

# A run's record, from the nats of every token of its validation and its test text.
SummaryOf = Callable[[np.ndarray, np.ndarray], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Job:
    """Models of one configuration, with consecutive seeds, that are trained together."""

    config: Config  # theirs, with the first seed
    count: int  # how many models

    @property
    def name(self) -> str:
        """The name of the folder that it runs in, and of its record."""
        first, last = self.seeds[0], self.seeds[-1]
        seeds = f"seed{first}" if self.count == 1 else f"seeds{first}-{last}"
        return f"{_file_name(self.config)}-{seeds}"

    @property
    def seeds(self) -> range:
        """The seeds of its models."""
        return range(self.config.seed, self.config.seed + self.count)


def _file_name(config: Config) -> str:
    """What the names of a model's folders and records begin with."""
    return shortened(model_name(config))


def remaining_jobs(
    config: Config, seeds: int, records: list[Record], folder: Path, at_most: int
) -> list[Job]:
    """The jobs left to train, of `seeds` models with consecutive seeds from that of `config`.

    Jobs already begun in `folder` come first, and their models stay together; a new one has at
    most `at_most` models.
    """
    left = set(range(config.seed, config.seed + seeds)) - recorded_seeds(config, records)
    begun = []
    for job in started_jobs(config, folder):
        if left.issuperset(job.seeds):
            begun.append(job)
            left.difference_update(job.seeds)
    jobs: list[Job] = []
    for seed in sorted(left):
        last = jobs[-1] if jobs else None
        if last and last.count < at_most and last.seeds.stop == seed:
            jobs[-1] = Job(last.config, last.count + 1)
        else:
            jobs.append(Job(override(config, seed=seed), 1))
    return begun + jobs


def started_jobs(config: Config, folder: Path) -> list[Job]:
    """The jobs of a configuration, whatever its seed, that have a folder, finished or not."""
    pattern = re.compile(rf"{re.escape(_file_name(config))}-seeds?(\d+)(?:-(\d+))?")
    matches = [pattern.fullmatch(path.name) for path in sorted(folder.glob("*"))]
    spans = [(int(match[1]), int(match[2] or match[1])) for match in matches if match]
    return [
        Job(override(config, seed=first), last - first + 1)
        for first, last in spans
        if first <= last < 2**32  # else a folder of that name is not ours
    ]


def recorded_seeds(config: Config, records: list[Record]) -> set[int]:
    """The seeds of a configuration that have records, including those that diverged."""
    return {seed for record in records_of(config, records) for seed in record.seeds}


def seeds_without_nll(config: Config, seeds: int, records: list[Record], folder: Path) -> list[int]:
    """The seeds with recorded perplexities but without nats that `mix` could average.

    Arguments as for `remaining_jobs`.
    """
    wanted = range(config.seed, config.seed + seeds)
    recorded = by_seed(records_of(config, records)).keys()
    return sorted((recorded & wanted) - read_nll(config, folder, records).keys())


def record_job(run: Run, summary_of: SummaryOf, workdir: Workdir, results: Path) -> dict[str, Any]:
    """Evaluates a trained job; writes its summary to a folder of its own in `results`, returns it.

    The models, and the nats of every token for `mix`, stay in the working directory.
    """
    run.write_models(workdir)
    valid, test = run.nll(run.corpus.valid), run.nll(run.corpus.test)
    summary = summary_of(valid, test)
    live = run.journal.live
    seeds = np.array([run.all_configs[index].seed for index in live])
    rows = {"valid": np.atleast_2d(valid)[live], "test": np.atleast_2d(test)[live]}
    write_arrays(workdir.nll, seeds=seeds, **rows)
    write_json(workdir.summary, summary)
    _leave_record(workdir, results, summary)
    return summary


def record_diverged(reasons: Mapping[int, str], workdir: Workdir, results: Path) -> None:
    """Records why all models of a run diverged, by seed, without perplexities.

    They would diverge again, and are not trained again.
    """
    lost = [{"seed": seed, "excluded": reason} for seed, reason in reasons.items()]
    _leave_record(workdir, results, {"members": lost, **environment()})


def _leave_record(workdir: Workdir, results: Path, summary: dict[str, Any]) -> None:
    if jax.process_index() > 0:  # of several hosts, only the first writes
        return
    record = Workdir(results / workdir.path.name)
    record.path.mkdir(parents=True, exist_ok=True)
    write_text(record.config, workdir.config.read_text())
    write_text(record.metrics, workdir.metrics.read_text())
    write_json(record.summary, summary)


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
    for path in sorted(folder.glob(f"{glob.escape(_file_name(config))}-seed*/nll.npz")):
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
    summary = summarize_mixtures(canonical_config(config), corpus, valid, test, averaged)
    return summary | {"seeds": seeds}


def mixtures_path(results: Path, config: Config) -> Path:
    """The path of the record of `mix`."""
    return results / f"{_file_name(config)}-mixtures.json"


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
