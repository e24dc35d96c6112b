"""One next step of a brief."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, the number that suggests it, and one reason why it might be wrong."""

    do: str
    why: str
    doubt: str
