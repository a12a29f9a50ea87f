"""Finished runs of one model, found again by their folders."""

from rich.console import Console

from experiments.training.resumption import resume
from experiments.training.run import is_finished
from experiments.training.run_folder import Workdir
from experiments.training.single_run import SingleRun, new_run
from experiments.training.unfinished_runs import restore_while_written
from zaremba_jax.config import Config
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.errors import InputError


def read_run_config(workdir: Workdir) -> Config:
    """The configuration of the run of one model in a folder."""
    try:
        config, more = workdir.read_config()
        if more:
            raise InputError(f"it has {', '.join(more)}, unlike a run of one model")
        return config
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{workdir.path}: holds no run of experiments.ptb ({error}); name the --workdir of one"
        ) from None


def load_finished_run(workdir: Workdir, config: Config, corpus: Corpus) -> SingleRun:
    """The finished run in a folder, of a configuration from `read_run_config`.

    Raises:
      InputError: it was trained on another text, is unfinished, or lacks intact checkpoints.
    """
    if workdir.summary.exists() and not workdir.checkpoints.exists():
        raise InputError(
            f"{workdir.path}: holds the record of a finished run without its checkpoints; name the"
            " folder that it was trained in"
        )
    run = new_run(config, corpus)
    resume(run, workdir, Console(quiet=True), restore_while_written)  # it may train on
    if not is_finished(run):
        total = run.config.train.epochs * len(run.windows)
        raise InputError(
            f"{workdir.path}: has trained on {run.step} of {total} windows; run its command"
            " again to finish it, or leave it out"
        )
    return run
