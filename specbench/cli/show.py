"""What several commands share: finding a run, printing its tables or JSON, the exit code under --strict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specbench.errors import StoreError
from specbench.text import clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from specbench.analysis.contract import Summary
    from specbench.records import Call
    from specbench.store import StoredRun

STRICT_EXIT = {"GO": 0, "UNCLEAR": 4, "NO-GO": 3}


def run_folder(named: Path | None, out: Path, *, timed: bool = False) -> Path:
    """The folder that the user names, by its path or as `@1`; unnamed the newest of a run, if `timed` of one with a
    wall clock or over recorded answers, which have none."""
    from specbench.store import find_run, find_runs, read_record

    if named is not None:
        return find_run(named, out)
    others = {"probe", "replay"} if timed else {"probe"}
    for folder in find_runs(out):
        record = read_record(folder)
        if record.command not in others or record.answers is not None:
            return folder
    raise StoreError("No run yet", where=str(out), hint="Run `specbench sweep` first.")


def print_parts(parts: Iterable[RenderableType], folder: Path | str | None = None) -> None:
    """Tables on stdout, and the run folder that they are from where there is one."""
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)
    if folder is not None:
        console.print(f"Run folder: {clean(folder)}", highlight=False, markup=False, soft_wrap=True)


def print_json(found: Any, **more: Any) -> None:
    """A record as one JSON object on stdout, with the words of its codes."""
    from specbench.report.dialect import json_of

    typer.echo(json.dumps(json_of(found) | more, allow_nan=False))


def show_replay(
    folder: Path, gammas: Sequence[int], cutoff: float, as_json: bool, *, best: bool = False, costs: Path | None = None
) -> None:
    """Print the replay of a stored run, priced by the run's own probe or by that of the folder `costs`, where there is
    one; with `best` also the search over cut-offs."""
    from specbench.analysis.replayed import prices_of, replayed
    from specbench.api import texts_of
    from specbench.store import read_run

    stored = read_run(folder)
    if stored.run.answers is not None:
        show_recorded(stored, gammas, cutoff, as_json, costs)
        return
    texts = texts_of(stored, gammas)
    readers, points = prices_of(stored.run, costs)
    if best and not points:
        raise StoreError(
            "This run did not time the models, so no pair can be called best",
            where=str(folder),
            hint="Give --costs the folder of a specbench probe.",
        )
    confidence = stored.run.config.policy.confidence
    found = replayed(str(folder), texts, gammas, cutoff, confidence, readers, points, best=best)
    found = replace(found, warnings=stored.run.warnings)
    if as_json:
        print_json(found)
        return
    from specbench.report.tables import replay_tables

    print_parts(replay_tables(found), folder)


def show_recorded(stored: StoredRun, gammas: Sequence[int], cutoff: float, as_json: bool, costs: Path | None) -> None:
    """Print what drafts would have got on recorded answers; with the folder of a probe also what it predicts."""
    from specbench.api import recorded_acceptance

    found = recorded_acceptance(stored, gammas, cutoff, costs)
    if as_json:
        print_json(found)
        return
    from specbench.report.tables import recorded_tables

    print_parts(recorded_tables(found), stored.folder)
    typer.echo(f"For the acceptance brief: specbench brief {stored.folder}", err=True)


def show(summary: Summary, as_json: bool, strict: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        from specbench.report.tables import sweep_tables

        print_parts(sweep_tables(summary), summary.run)
        typer.echo(f"For the decision brief: specbench brief {summary.run}", err=True)
    if strict:
        exit_on(summary.verdict)


def exit_on(verdict: Call) -> None:
    """Under --strict the verdict on the whole run is the exit code."""
    raise typer.Exit(STRICT_EXIT[verdict])
