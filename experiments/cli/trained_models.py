"""Finds trained models where runs left them, and encodes a user's text in their vocabulary."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.training.run_folder import Workdir
from zaremba_jax.data.vocabulary import EOS, UNIT_NAMES, UNK, Vocabulary
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop.model_file import FOLDER_VOCABULARY, Model, load_folder, load_model


def load_models(paths: list[str]) -> list[Model]:
    """The models in folders and files; for an ensemble's folder, all its members.

    Raises:
      InputError: no path is given, a run has written no model yet, a file is no model, or the
        vocabularies differ.
      MissingFileError: a path holds no model.
    """
    joined = ",".join(paths)  # if it is one path with commas in its name
    paths = [joined] if os.path.exists(joined) else paths
    files = [file for path in paths for file in _model_files(Path(path))]
    if not files:
        raise InputError("--workdir: names no model; give the folder of a finished run")
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


def line_end(vocabulary: Vocabulary) -> str | None:
    """The token that ends a line, if the vocabulary has one."""
    token = EOS if vocabulary.unit == "word" else "\n"
    return token if token in vocabulary.words else None


def unknown_tokens(vocabulary: Vocabulary, tokens: Iterable[str]) -> dict[str, int]:
    """The tokens that a vocabulary lacks, most frequent first, and how often each occurs."""
    known = set(vocabulary.words)
    return dict(Counter(token for token in tokens if token not in known).most_common())


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> tuple[np.ndarray, dict[str, int]]:
    """What is read before the first generated token, and the prompt's unknown tokens.

    A prompt begins a line: the end of another comes before it if the vocabulary has line
    ends.

    Raises:
      InputError: a token is unknown and the vocabulary has no `<unk>`, or there is nothing
        to read.
    """
    end, tokens = line_end(vocabulary), vocabulary.tokenize(prompt)
    unknown, noun = unknown_tokens(vocabulary, tokens), UNIT_NAMES[vocabulary.unit]
    if unknown and UNK not in vocabulary.words:
        raise InputError(
            f"--prompt={prompt}: not among the {len(vocabulary)} {noun}s of the model:"
            f" {listed(unknown)}; leave them out"
        )
    if end is None and not tokens:
        raise InputError(f"--prompt: the vocabulary has no line ends to begin at; give a {noun}")
    context = tokens if end is None else [end, *tokens]
    return vocabulary.encode(context, "--prompt"), unknown


def listed(unknown: dict[str, int], most: int = 10) -> str:
    """The first `most` tokens, each with its count if it occurs more than once."""
    named = [
        token if count == 1 else f"{token} ({count} times)"
        for token, count in list(unknown.items())[:most]
    ]
    more = len(unknown) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
