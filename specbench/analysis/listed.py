"""The runs that are there, a line each: what `specbench runs` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specbench.analysis.summarise import summarise
from specbench.errors import SpecbenchError
from specbench.records import Call
from specbench.run_record import RunRecord
from specbench.store import read_record, read_run


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run folder, the `number`-th newest (`@1`). What it has no measurement of is None: a probe and a replay have
    no verdict, nor has a run that was cut before a prompt was through. `drafts` are all that it measured, `draft` and
    `gamma` those chosen; `problem` says why a folder could not be read, without which nothing else is known."""

    number: int
    folder: str
    command: str | None = None
    status: str | None = None
    started: str | None = None
    target: str | None = None
    engine: str | None = None
    drafts: tuple[str, ...] = ()
    verdict: Call | None = None
    draft: str | None = None
    gamma: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    noise_floor: float | None = None
    problem: str | None = None


def listed(folders: Sequence[Path]) -> tuple[ListedRun, ...]:
    """`folders` newest first, as `find_runs` gives them."""
    return tuple(_line(number, folder) for number, folder in enumerate(folders, 1))


def _line(number: int, folder: Path) -> ListedRun:
    try:
        run = read_record(folder)
    except SpecbenchError as error:
        return ListedRun(number, str(folder), problem=error.what)
    known = ListedRun(
        number,
        str(folder),
        command=run.command,
        status=run.status,
        started=run.provenance.started,
        target=run.config.target,
        engine=_engine(run),
        drafts=run.config.draft,
    )
    try:
        summary = summarise(read_run(folder)) if run.command in ("measure", "sweep") else None
    except SpecbenchError:  # nothing to judge yet
        summary = None
    if summary is None:
        return known
    known = replace(known, verdict=summary.verdict, noise_floor=summary.noise_floor)
    if (choice := summary.choice) is None:
        return known
    return replace(
        known,
        draft=choice.draft,
        gamma=choice.gamma,
        speedup=choice.speedup,
        speedup_low=choice.speedup_low,
        speedup_high=choice.speedup_high,
    )


def _engine(run: RunRecord) -> str:
    """The adapter's name of a run on a server, which says more than its configuration."""
    return (run.served.adapter if run.served else None) or run.config.engine
