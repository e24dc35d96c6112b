"""Rows that cannot be taken. Both leave the row out, listed with its place; where no row gives a prompt, the first of
them is the error of the whole file."""

from __future__ import annotations


class SkipRowError(Exception):
    """The row is sound but is no text prompt; the argument is the reason."""


class MalformedRowError(Exception):
    """The row cannot be read: what is wrong and the hint."""

    def __init__(self, what: str, hint: str) -> None:
        self.what = what
        self.hint = hint
        super().__init__(what)
