"""Files that are written whole: a reader finds the old content or the new, never a part."""

import os
from pathlib import Path

PARTIAL = ".partial"  # ends the name of the file that becomes the target


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file beside its target, and renames it once it is complete.

    Raises:
      OSError: it cannot be written; the target is as it was.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)
