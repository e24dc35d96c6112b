"""`specbench brief`: the decision brief of one run, or of several."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.app import app
from specbench.cli.options import Grouped, Keys, Own, RunsIn, Strict, with_settings
from specbench.cli.show import exit_on, run_folder
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.analysis.contract import Summary
    from specbench.records import Call
    from specbench.store import StoredRun

_NAME_WIDTH = 100


@app.command("brief", cls=Grouped)
@with_settings("brief", mix=Own(unset="the run's"))
def brief(
    keys: Keys,
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or @1 @2; several give one brief.  [default: the newest]")
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write to.  [default: the run's; for several a new one under --out]",
            rich_help_panel="output",
        ),
    ] = None,
    out: RunsIn = Path("reports"),
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout instead of the brief.", rich_help_panel="output")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="The HTML page on stdout instead of the Markdown.", rich_help_panel="output")
    ] = False,
    alerts: Annotated[
        bool,
        typer.Option(
            help="Beside it alert rules for Prometheus and a Grafana dashboard, of one run on a server.",
            rich_help_panel="output",
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Write the decision brief of a run, or of several. Markdown, HTML and figures, from the run folders alone; a
    policy flag here goes before the run's."""
    if as_json and html:
        raise ConfigError("Only one can be on stdout", where="--json and --html", hint="Leave one out.")
    if alerts and len(run or ()) > 1:
        raise ConfigError("Alerts are about one run", where="--alerts", hint="Name the run that was decided by.")
    folders = [run_folder(each, out, timed=True) for each in run or (None,)]
    if len(folders) == 1 and (stored := _recorded(folders[0], keys)) is not None:
        _acceptance(stored, to, as_json, html, strict)
        return
    if "numpy" not in sys.modules:  # its matrices here are not worth several threads, which wait for each other busily
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    path, call, found = _one(folders[0], keys, to) if len(folders) == 1 else _several(folders, keys, to, out)
    if as_json:
        typer.echo(json.dumps(found | {"brief": str(path)}, allow_nan=False))
    else:
        typer.echo((path.with_suffix(".html") if html else path).read_text(encoding="utf-8"))
        # The page is long: what it says once more, where the reader's eyes are.
        typer.echo(f"{call}. Written to {path} and {path.with_suffix('.html').name}", err=True)
    if alerts:
        from specbench.api import load_run

        rules, dashboard = load_run(folders[0], **keys).write_alerts(path.parent)
        typer.echo(f"Alert rules in {rules}, for `rule_files` of Prometheus; {dashboard.name} is to import in Grafana",
                   err=True)  # fmt: skip
    if strict:
        exit_on(call)


def _recorded(folder: Path, asked: Mapping[str, object]) -> StoredRun | None:
    """The run under the policy that is asked for, where it is one over recorded answers."""
    from specbench.api import load_run
    from specbench.store import read_record

    return None if read_record(folder).answers is None else load_run(folder, **asked).stored


def _acceptance(stored: StoredRun, to: Path | None, as_json: bool, html: bool, strict: bool) -> None:
    """Of recorded answers there is acceptance, and no verdict."""
    if strict:
        raise ConfigError("Recorded answers have no verdict", where="--strict", hint="Measure one: specbench sweep.")
    from specbench.api import recorded_acceptance
    from specbench.report.acceptance_brief import write_acceptance_brief

    found = recorded_acceptance(stored, stored.run.config.gamma)
    path = write_acceptance_brief(stored, found, to)
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"brief": str(path)}, allow_nan=False))
        return
    typer.echo((path.with_suffix(".html") if html else path).read_text(encoding="utf-8"))
    typer.echo(f"NO VERDICT. Written to {path} and {path.with_suffix('.html').name}", err=True)


def _one(folder: Path, asked: Mapping[str, object], to: Path | None) -> tuple[Path, Call, dict[str, Any]]:
    """Path of the brief, the verdict on the whole run, and what `--json` prints."""
    from specbench.api import load_run

    run = load_run(folder, **asked)
    return run.write_brief(to), run.verdict, _object(run.stored, run.summary)


def _several(
    folders: Sequence[Path], asked: Mapping[str, object], to: Path | None, out: Path
) -> tuple[Path, Call, dict[str, Any]]:
    """The same of several runs; the verdict is that of the first run on a server, or of the first."""
    from specbench.api import load_run
    from specbench.report.brief.several import write_several

    stored = [load_run(folder, **asked).stored for folder in folders]
    runs, path = write_several(stored, to or out / _name(stored))
    return path, runs[0].call, {"runs": [_object(run.stored, run.summary) for run in runs]}


def _object(stored: StoredRun, summary: Summary) -> dict[str, Any]:
    return summary.to_json() | {"policy": asdict(stored.run.config.policy), "break_evens": _break_evens(summary)}


def _break_evens(summary: Summary) -> list[dict[str, Any]]:
    """One entry for each draft and gamma, flat, for those who look for nothing else."""
    return [
        {"draft": draft.draft, "gamma": row.gamma, **asdict(row.break_even)}
        for draft in summary.drafts
        for row in draft.gammas
        if row.break_even is not None
    ]


def _name(stored: Sequence[StoredRun]) -> str:
    """The same folder for the same runs, so that a brief made again replaces itself."""
    return f"brief-{'-'.join(each.folder.name for each in stored)}"[:_NAME_WIDTH]
