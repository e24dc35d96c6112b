"""What a sweep's looks ruled out, as run.json has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.checks.fields import read_as
from specbench.records import RuledOut


def ruled_out(run: Mapping[str, Any]) -> tuple[RuledOut, ...]:
    """In the order in which it was found; run.json is checked where it is read."""
    return tuple(read_as(RuledOut, one, "ruled_out") for one in run.get("ruled_out") or ())


def spared(run: Mapping[str, Any]) -> int:
    """Trials of the plan that need not be run."""
    found = ruled_out(run)
    return sum(one.planned - one.prompts for one in found) * int(run["config"]["repeats"]) if found else 0
