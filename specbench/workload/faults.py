"""What the rows of all formats share: names that are safe to show, since errors never hold prompt text, and rows that
cannot be taken. These are left out, listed with their place; where no row gives a prompt, the first of them is the
error of the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class SkipRowError(Exception):
    """The row is sound but is no text prompt; the argument is the reason."""


class MalformedRowError(Exception):
    """The row cannot be read: what is wrong and the hint."""

    def __init__(self, what: str, hint: str) -> None:
        self.what = what
        self.hint = hint
        super().__init__(what)


_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,39}")


def list_names(names: Iterable[object]) -> str:
    """Column names as "id, text". A name that could be prompt text (the first line of a CSV file without a
    header) is counted, not shown."""
    given = [name if isinstance(name, str) else "" for name in names]
    plain = [name for name in given if _PLAIN_NAME.fullmatch(name)]
    hidden = len(given) - len(plain)
    if hidden:
        plain.append(f"{hidden} not shown because {'it' if hidden == 1 else 'they'} may be prompt text")
    return ", ".join(plain) or "none"
