"""Text files of any size, block by block: plain, gzip, or inside a zip archive."""

import bisect
import codecs
import dataclasses
import glob
import gzip
import hashlib
import io
import itertools
import os
import stat
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.whole_files import naming

BLOCK = 2**20  # bytes in memory at a time
_GZIP = b"\x1f\x8b"  # the first bytes of such a file, whatever its name
_MARK = "\ufeff"  # the byte-order mark that some programs put first
_STANDARD_INPUT = Path("/dev/stdin")
_DAMAGED = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A text file, or its bytes from `start` to `stop`; `member` names it inside an archive."""

    path: Path
    member: str | None = None
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"


def find_files(pattern: str | Path, *, read_once: bool = False) -> list[Piece]:
    """The files that a pattern names: one file, or several separated by commas, or globs.

    With `read_once`, any of them may be a stream: `-` for standard input, or the path of a pipe.

    Raises:
      MissingFileError: a name or a glob matches no file.
      InputError: a file is named twice, or standard input is closed.
    """
    paths: list[Path] = []
    # Path.is_file raises an error for a name that is too long for a file.
    for part in [str(pattern)] if os.path.isfile(pattern) else str(pattern).split(","):
        if read_once and _is_stream(part):
            if part == "-" and sys.stdin is None:  # its number may by now be another file's
                raise InputError("-: standard input is closed; pipe a text to it, or name a file")
            paths.append(_STANDARD_INPUT if part == "-" else Path(part))
            continue
        matches = [part] if os.path.isfile(part) else sorted(glob.glob(part, recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if str(_STANDARD_INPUT) in matches:
            files = []  # even if a file is redirected to it, what is read of it is gone
        if not files:
            there = part == "-" or os.path.exists(part)
            what = "is not a regular file" if there else "no such file"
            raise MissingFileError(
                f"{part}: {what}; give the path of a text file, several separated by"
                " commas, or a glob in quotes"
            )
        paths += files
    counts = Counter(path.resolve() for path in paths)
    if twice := sorted(str(path) for path in paths if counts[path.resolve()] > 1):
        raise InputError(f"{pattern}: names {twice[0]} twice; name each file once")
    return [Piece(path) for path in paths]


def _is_stream(name: str) -> bool:
    """Whether a name is that of standard input, a pipe, a terminal or the like."""
    if name in ("-", str(_STANDARD_INPUT)):
        return True
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def cut_at_lines(text: Sequence[Piece], fractions: Sequence[float]) -> list[list[Piece]]:
    """The text in consecutive parts of whole lines.

    Args:
      text: its files, which are read once more.
      fractions: how much of its bytes each part but the first has, up to the next line's start.

    Raises:
      InputError: as for `read_bytes`.
    """
    sizes = [sum(map(len, read_bytes(piece))) for piece in text]
    starts = [0, *itertools.accumulate(sizes)]
    lasting = itertools.accumulate(reversed(fractions))  # from the start of a part to the end
    wanted = [round(starts[-1] * (1 - share)) for share in lasting][::-1]
    cuts = [0, *(_line_start(text, starts, cut) for cut in wanted), starts[-1]]
    return [
        [
            dataclasses.replace(piece, start=max(first - start, 0), stop=min(stop - start, size))
            for piece, start, size in zip(text, starts, sizes, strict=False)
            if max(first, start) < min(stop, start + size)
        ]
        for first, stop in itertools.pairwise(cuts)
    ]


def _line_start(text: Sequence[Piece], starts: Sequence[int], position: int) -> int:
    """The first position, counted in bytes of the whole text, at which a line starts."""
    index = bisect.bisect_left(starts, position) - 1  # the piece with the byte before it
    if index < 0:
        return 0
    place = position - 1
    for block in read_bytes(dataclasses.replace(text[index], start=place - starts[index])):
        if (found := block.find(b"\n")) >= 0:
            return place + found + 1
        place += len(block)
    return starts[index + 1]


@contextmanager
def _opened(piece: Piece) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if piece.member is not None:
            archive = stack.enter_context(zipfile.ZipFile(piece.path))
            try:
                member = archive.open(piece.member)
            except RuntimeError as error:  # encrypted, or packed in a way unknown to Python
                raise zipfile.BadZipFile(str(error)) from None
            yield cast(BinaryIO, stack.enter_context(member))
            return
        source = 0 if piece.path == _STANDARD_INPUT else piece.path  # a socket has no other name
        file = stack.enter_context(open(source, "rb", closefd=source != 0))
        if file.peek(2)[:2] == _GZIP:
            yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
        else:
            yield file


def read_bytes(piece: Piece) -> Iterator[bytes]:
    """Yields the bytes of a file, decompressed.

    Raises:
      InputError: a compressed file is damaged.
    """
    try:
        with naming(piece.path), _opened(piece) as file:
            if piece.start:  # a stream cannot seek
                file.seek(piece.start)
            offset = piece.start
            while block := file.read(
                BLOCK if piece.stop is None else min(BLOCK, piece.stop - offset)
            ):
                yield block
                offset += len(block)
    except _DAMAGED as error:
        raise InputError(
            f"{piece}: damaged, cannot be decompressed ({error}); copy or download it again"
        ) from None


def content_hash(piece: Piece, algorithm: str = "sha256") -> str:
    """A hash of the decompressed bytes; errors as for `read_bytes`."""
    digest = hashlib.new(algorithm)
    for block in read_bytes(piece):
        digest.update(block)
    return digest.hexdigest()


def decode(piece: Piece) -> Iterator[str]:
    """Yields the characters of a UTF-8 file, without a leading byte-order mark.

    Raises:
      InputError: as for `read_bytes`, or the file is not UTF-8.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), piece.start
    begins = piece.start == 0
    for block in itertools.chain(read_bytes(piece), [b""]):  # the last marks the end
        held = len(decoder.getstate()[0])  # bytes of a character that the last block cut
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{piece}: not UTF-8 text at byte {offset - held + error.start}; convert the file"
                " to UTF-8 first, or read it as bytes"
            ) from None
        yield text.removeprefix(_MARK) if begins else text
        begins = begins and not text
        offset += len(block)


def read_whole_words(piece: Piece) -> Iterator[str]:
    """Yields a text in blocks that cut no word.

    Any line end becomes a line feed, and the last line has one too. Errors are as for `decode`.
    """
    return _cut_after(_line_feeds(decode(piece)), "\n ")


def read_normalized_lines(piece: Piece) -> Iterator[str]:
    """The same in whole lines, with one space between words and no other white space."""
    return map(_normalized, _cut_after(_line_feeds(decode(piece)), "\n"))


def _line_feeds(blocks: Iterable[str]) -> Iterator[str]:
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    for block in blocks:
        yield newlines.decode(block)
    yield newlines.decode("", final=True)


def _cut_after(blocks: Iterable[str], separators: str) -> Iterator[str]:
    """The same text, cut only after one of the characters `separators`, ending in a line end."""
    pending, last = [""], "\n"
    for block in filter(None, blocks):
        cut = max(map(block.rfind, separators)) + 1
        if cut:
            yield "".join([*pending, block[:cut]])
            pending.clear()
        pending.append(block[cut:])
        last = block[-1]
    rest = "".join(pending) + ("" if last == "\n" else "\n")
    if rest:
        yield rest


def _normalized(lines: str) -> str:
    return "".join(" ".join(line.split()) + "\n" for line in lines.removesuffix("\n").split("\n"))
