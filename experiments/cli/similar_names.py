"""What somebody may have meant by a name that there is not."""

import difflib
from collections.abc import Iterable

_AT_MOST = 3
_ALIKE = 0.65  # share of the letters
_SHORTEST_PART = 3


def similar(wrong: str, known: Iterable[str]) -> list[str]:
    """The known names with these initials, else the misspelt ones, else those that contain it."""
    known, wrong = list(known), wrong.lower().replace("-", "_")
    initials = [name for name in known if "".join(part[0] for part in name.split("_")) == wrong]
    spelt = difflib.get_close_matches(wrong, known, _AT_MOST, _ALIKE)
    containing = [name for name in known if len(wrong) >= _SHORTEST_PART and wrong in name]
    return (initials or spelt or containing)[:_AT_MOST]


def did_you_mean(wrong: str, known: Iterable[str], prefix: str = "") -> str:
    """A question with the similar names; empty if there are none."""
    names = [f"{prefix}{name}" for name in similar(wrong, known)]
    return f"did you mean {' or '.join(names)}?" if names else ""
