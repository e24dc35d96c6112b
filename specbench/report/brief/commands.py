"""How to check a run: commands that count again, repeat or extend it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.facts import Facts


def checks(facts: Facts, folder: str) -> list[tuple[str, str]]:
    """(what it tells, command) pairs that count again, repeat or extend the run in `folder`; those that repeat it are
    left out where its command was not recorded."""
    found = []
    # transformers' assisted generation knows no batches, and none of what a server runs.
    if facts.batch_size == 1 and not facts.served:
        again = "Drafted and accepted tokens, counted again by assisted generation in transformers."
        found.append((again, shell(["specbench", "check", folder])))
    if not facts.argv:
        return found
    found += [("The same again; the speedup should fall inside the interval most times.", shell(_fresh(facts.argv)))]
    available, used = facts.workload.available, facts.workload.used
    if available is not None and used is not None and available > used:
        found.append(("Every prompt of the workload.", limited_command(facts, available) or ""))
    if facts.sampling.greedy and not facts.served and facts.precision in ("bfloat16", "float16"):
        exact = [*_without(_fresh(facts.argv), "--dtype"), "--dtype", "float32"]
        found.append(("In float32, where every text has to equal the target's own; any other is a bug.", shell(exact)))
    return found


def limited_command(facts: Facts, limit: int) -> str | None:
    """The run's own command over `limit` prompts; None where it was not recorded."""
    if not facts.argv:
        return None
    return shell([*_without(_fresh(facts.argv), "--limit"), "--limit", str(limit)])


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


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, the number that suggests it, and one reason why it might be wrong."""

    do: str
    why: str
    doubt: str
