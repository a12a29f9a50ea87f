"""The runs behind the table: what is left to train, and how it is recorded."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.reports.records import Record, model_name, records_of
from experiments.training.environment import environment
from experiments.training.run import Run
from experiments.training.run_folder import Workdir, shortened
from experiments.training.written_files import write_arrays, write_json, write_text
from zaremba_jax.config import Config, override

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
        return f"{file_name(self.config)}-{seeds}"

    @property
    def seeds(self) -> range:
        """The seeds of its models."""
        return range(self.config.seed, self.config.seed + self.count)


def file_name(config: Config) -> str:
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
    pattern = re.compile(rf"{re.escape(file_name(config))}-seeds?(\d+)(?:-(\d+))?")
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


def record_job(run: Run, summary_of: SummaryOf, workdir: Workdir, results: Path) -> dict[str, Any]:
    """Evaluates a trained job; writes its summary to a folder of its own in `results`, returns it.

    The models, and the nats of every token for averages, stay in the working directory.
    """
    run.write_models(workdir)
    valid, test = run.nll(run.corpus.valid), run.nll(run.corpus.test)
    summary = summary_of(valid, test)
    live = run.journal.live
    seeds = np.array([run.all_configs[index].seed for index in live])
    rows = {"valid": np.atleast_2d(valid)[live], "test": np.atleast_2d(test)[live]}
    workdir.require_held()
    write_arrays(workdir.nll, seeds=seeds, **rows)
    write_json(workdir.summary, summary)
    _leave_record(workdir, results, summary)
    return summary


def record_diverged(run: Run, reasons: Mapping[int, str], workdir: Workdir, results: Path) -> None:
    """Records why all models of a run diverged, by seed, without perplexities.

    They would diverge again, and are not trained again.
    """
    lost = [{"seed": seed, "excluded": reason} for seed, reason in reasons.items()]
    trained = environment(run.devices) | run.journal.provenance
    _leave_record(workdir, results, {"members": lost, **trained})


def _leave_record(workdir: Workdir, results: Path, summary: dict[str, Any]) -> None:
    if jax.process_index() > 0:  # of several hosts, only the first writes
        return
    record = Workdir(results / workdir.path.name)
    record.path.mkdir(parents=True, exist_ok=True)
    write_text(record.config, workdir.config.read_text())
    write_text(record.metrics, workdir.metrics.read_text())
    write_json(record.summary, summary)
