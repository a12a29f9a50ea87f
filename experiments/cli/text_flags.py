"""Flags that say which text is read, and the text."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from absl.flags import FLAGS

from experiments.cli.config_flags import TEXT
from experiments.cli.flag_kinds import define_path
from experiments.cli.help import flag_group
from zaremba_jax.config import Config, override
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.encoding import Encoding, read_corpus
from zaremba_jax.data.published import PUBLISHED, load_published
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.data.units import UNITS
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.data.vocabulary_files import read_word_list
from zaremba_jax.errors import InputError
from zaremba_jax.model import Model

TEXT_FILES = ("train_file", "valid_file", "test_file")
FRACTIONS = ("valid_fraction", "test_fraction")
_word_lists: dict[str | None, Vocabulary] = {}  # by fingerprint; a pipe can be read only once

with flag_group(TEXT):
    define_path(
        "vocabulary", None, "file of the words to know, one a line or as JSON; others become <unk>"
    )
    define_path("data_dir", None, "folder with a published corpus (default: download)")
    for split in ("train", "valid", "test"):
        instead = "" if split == "train" else f"; or see --{split}_fraction"
        own = "your own text: files or globs, comma-separated"
        define_path(f"{split}_file", None, f"{own}{instead}")
    for split in ("valid", "test"):
        flags.DEFINE_float(
            f"{split}_fraction",
            None,
            f"instead of --{split}_file: this fraction of --train_file, whole lines from its end",
        )
    define_path(
        "cache_dir", None, "folder for downloaded and encoded texts (default: the user's cache)"
    )


def with_text_settings(config: Config, changes: dict[str, int | float | str | None]) -> Config:
    """The configuration with the corpus and the unit that the flags of the text imply.

    `changes` are the settings given by flags. Refuses flags that do not go together.
    """
    if any(FLAGS[name].value is not None for name in (*TEXT_FILES, *FRACTIONS)):
        _check_own_text()
        if changes.get("corpus", "files") != "files":
            raise InputError(
                f"--train_file: is your own text, but this run reads {config.corpus}; leave out"
                " --train_file or --corpus"
            )
        config = override(config, corpus="files")
    elif config.corpus == "files":
        raise InputError(
            "corpus=files: is your own text; give --train_file, and --valid_file and --test_file,"
            " or --valid_fraction and --test_fraction"
        )
    if FLAGS.data_dir and config.corpus not in PUBLISHED:
        raise InputError(
            f"--data_dir={FLAGS.data_dir}: holds a published corpus, but this run reads"
            f" {config.corpus}; leave it out, or choose the corpus, as in --corpus=ptb"
        )
    return _with_word_list(_with_own_unit(config, changes), changes)


def _check_own_text() -> None:
    """Refuses flags that do not name three texts, each once."""
    for name, fraction in zip(TEXT_FILES[1:], FRACTIONS, strict=True):
        if FLAGS[name].value and FLAGS[fraction].value is not None:
            raise InputError(f"--{fraction}: takes the place of --{name}; leave out one of the two")
        if not (FLAGS.train_file and (FLAGS[name].value or FLAGS[fraction].value is not None)):
            raise InputError(
                "--train_file, --valid_file and --test_file go together: give all, or, to take"
                " lines from the end of --train_file, --valid_fraction and --test_fraction"
            )


def _with_own_unit(config: Config, changes: dict[str, int | float | str | None]) -> Config:
    """The configuration with the unit of its corpus; a published one is read in one unit only."""
    if config.corpus == "files":
        return config
    unit = PUBLISHED[config.corpus].unit if config.corpus in PUBLISHED else "word"
    if changes.get("unit", unit) != unit:
        raise InputError(
            f"--unit={config.unit}: {config.corpus} is read by the {unit}; leave it out"
        )
    for name in ("vocab_size", "min_count", "vocabulary"):
        if config.corpus == "toy" and FLAGS[name].value is not None:
            raise InputError(
                f"--{name}={FLAGS[name].value}: the built-in corpus has its own vocabulary; leave"
                " it out"
            )
    return override(config, unit=unit)


def _with_word_list(config: Config, changes: dict[str, int | float | str | None]) -> Config:
    """The configuration with the fingerprint of the list that `--vocabulary` names, if it does."""
    if FLAGS.vocabulary is None:
        return config
    for name in ("vocab_size", "min_count"):
        if name in changes:
            raise InputError(
                f"--{name}={changes[name]}: --vocabulary lists the {UNITS[config.unit].noun}s to"
                " keep; leave one of the two out"
            )
    words = read_word_list(FLAGS.vocabulary, config.unit)
    config = override(config, vocabulary=words.fingerprint[:16])
    _word_lists[config.vocabulary] = words
    return config


def load_corpus(config: Config, model: Model | None = None) -> Corpus:
    """Reads, downloads or generates the text of a configuration that `with_text_settings` returned.

    Its vocabulary is that of `--vocabulary`, or of a model, if one of them is given.
    """
    vocabulary = None if model is None else model.vocabulary
    if config.corpus == "toy":
        corpus = toy_corpus()
        if vocabulary not in (None, corpus.vocabulary):
            raise InputError(
                f"--corpus=toy: has another vocabulary than {FLAGS.init_from}; name a text"
            )
        return corpus
    vocabulary = _word_lists.get(config.vocabulary, vocabulary)
    if config.corpus in PUBLISHED:
        with _naming_flags({"(read_corpus)": "(--train_file)"}):
            return load_published(
                config.corpus,
                FLAGS.data_dir,
                vocab_size=config.vocab_size,
                min_count=config.min_count,
                cache_dir=FLAGS.cache_dir,
                vocabulary=vocabulary,
            )
    train = str(FLAGS.train_file)
    valid, test = map(_text_or_fraction, TEXT_FILES[1:], FRACTIONS)
    name = ", ".join(Path(part).name for part in train.split(","))
    encoding = Encoding(config.unit, config.vocab_size, config.min_count, vocabulary=vocabulary)
    shares = {"valid": FLAGS.valid_fraction, "test": FLAGS.test_fraction}
    flags = {f"{split}={x}": f"--{split}_fraction={x}" for split, x in shares.items()}
    with _naming_flags(flags):
        return read_corpus(name, train, valid, test, encoding, FLAGS.cache_dir)


@contextlib.contextmanager
def _naming_flags(flags: dict[str, str]) -> Iterator[None]:
    """Names flags in errors of the library, in place of what it calls its own arguments."""
    try:
        yield
    except InputError as error:
        message = str(error)
        for argument, flag in flags.items():
            message = message.replace(argument, flag)
        raise type(error)(message) from None


def _text_or_fraction(text: str, fraction: str) -> str | float:
    """The value of the one flag of the two that is given."""
    return FLAGS[text].value or float(str(FLAGS[fraction].value))
