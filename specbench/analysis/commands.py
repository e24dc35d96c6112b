"""How to check a run: commands that count again, repeat or extend it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from specbench import text
from specbench.analysis.facts import Facts


def checks(facts: Facts, folder: str) -> list[tuple[str, str]]:
    """(what it tells, command) pairs that count again, repeat or extend the run in `folder`; those that repeat it are
    left out where its command was not recorded. What it tells is a code: "counts", "again", "all" or "exact"."""
    found = []
    # transformers' assisted generation knows no batches, and none of what a server runs.
    if facts.batch_size == 1 and not facts.served:
        found.append(("counts", shell(["specbench", "check", folder])))
    if not facts.argv:
        return found
    found.append(("again", shell(_fresh(facts.argv))))
    available, used = facts.workload.available, facts.workload.used
    if available is not None and used is not None and available > used:
        found.append(("all", limited_command(facts, available) or ""))
    if facts.sampling.greedy and not facts.served and facts.precision in ("bfloat16", "float16"):
        found.append(("exact", shell([*_without(_fresh(facts.argv), "--dtype"), "--dtype", "float32"])))
    return found


def limited_command(facts: Facts, limit: int) -> str | None:
    """The run's own command over `limit` prompts; None where it was not recorded."""
    if not facts.argv:
        return None
    return shell([*_without(_fresh(facts.argv), "--limit"), "--limit", str(limit)])


def changed_command(facts: Facts, **options: str) -> str:
    """The run's own command with these options instead of its own; of `specbench sweep` where it was not recorded."""
    argv = _fresh(facts.argv) if facts.argv else ["specbench", "sweep"]
    for name in options:
        argv = _without(argv, f"--{name}")
    return shell([*argv, *(part for name, value in options.items() for part in (f"--{name}", value))])


def command(facts: Facts) -> str | None:
    """The run's own command, as typed."""
    return shell(facts.argv) if facts.argv else None


def _fresh(argv: Sequence[str]) -> list[str]:
    return [*(part for part in argv if part not in ("--fresh", "--resume")), "--fresh"]


def _without(argv: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for part in argv:
        if skip:
            skip = False
        elif part == option:
            skip = True
        elif not part.startswith(f"{option}="):
            kept.append(part)
    return kept


def shell(argv: Sequence[str]) -> str:
    """The words as a line for a shell."""
    return shlex.join(text.clean(part) for part in argv)
