"""Commands that read what is there: `brief` and `replay` a stored run, `workload` a prompt file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli.app import app
from specbench.cli.show import exit_strictly, newest, print_parts, show_replay
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.report.contract import Summary


@app.command("brief")
def brief(
    run: Annotated[Path | None, typer.Argument(help="Run folder.  [default: the newest]")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Smallest speedup worth having.")] = None,
    metric: Annotated[str | None, typer.Option(help="What the verdict is on: decode or e2e.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of intervals and verdicts, such as 0.95.")] = None,
    mix: Annotated[str | None, typer.Option(help="Your traffic: code=0.6,chat=0.4.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of the machine: adds the price per token.")] = None,
    max_added_gb: Annotated[float | None, typer.Option(help="Memory that the draft may take.")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("reports"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of the brief.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 3 on NO-GO and 4 on UNCLEAR.")] = False,
) -> None:
    """Write the decision brief (markdown and figures) from a run folder. A policy flag here goes before the run's."""
    from specbench.config import override_policy
    from specbench.report.brief import write_brief
    from specbench.report.summarise import summarise
    from specbench.store import read_run

    stored = read_run(run or newest(out, timed=True))
    asked = {
        "min_speedup": min_speedup,
        "metric": metric,
        "confidence": confidence,
        "mix": mix,
        "price_per_hour": price_per_hour,
        "max_added_gb": max_added_gb,
    }
    policy = override_policy(stored.run["config"]["policy"], asked)
    stored = replace(stored, run=stored.run | {"config": stored.run["config"] | {"policy": policy}})
    summary = summarise(stored)
    path = write_brief(stored, summary)
    if as_json:
        typer.echo(
            json.dumps(
                summary.to_json() | {"policy": policy, "break_evens": _break_evens(summary), "brief": str(path)},
                allow_nan=False,
            )
        )
    else:
        typer.echo(path.read_text(encoding="utf-8"))
        typer.echo(f"Written to {path}", err=True)
    exit_strictly(summary, strict)


def _break_evens(summary: Summary) -> list[dict[str, Any]]:
    """One entry for each draft and gamma, flat, for those who look for nothing else."""
    return [
        {"draft": draft.draft, "gamma": row.gamma, **asdict(row.break_even)}
        for draft in summary.drafts
        for row in draft.gammas
        if row.break_even is not None
    ]


@app.command("replay")
def replay(
    run: Annotated[Path | None, typer.Argument(help="Run folder.  [default: the newest]")] = None,
    gamma: Annotated[str, typer.Option(help="Draft lengths: 1..8, 1..8..2 or 1,2,4.")] = "1..8",
    cutoff: Annotated[float, typer.Option(help="Stop drafting below this draft confidence (llama.cpp: p-min).")] = 0.0,
    best: Annotated[bool, typer.Option("--best", help="Look for the best pair of draft length and cut-off.")] = False,
    costs: Annotated[Path | None, typer.Option(help="Probe folder to price --best with.  [default: the run's]")] = None,
    out: Annotated[Path, typer.Option(help="Where run folders are.")] = Path("reports"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Acceptance at any draft length and cut-off, from a stored run, without a model."""
    from specbench.checks import parse_gammas

    try:
        gammas = parse_gammas(gamma)
    except ValueError as error:
        raise ConfigError(str(error), where="--gamma") from None
    if not 0.0 <= cutoff < 1.0:
        raise ConfigError(f"{cutoff} is no confidence", where="--cutoff", cure="Give a number from 0 to below 1.")
    if costs is not None and not best:
        raise ConfigError("Costs are used by the search alone", where="--costs", cure="Add --best.")
    show_replay(run or newest(out), gammas, cutoff, as_json, best=best, costs=costs)


@app.command("workload")
def workload_profile(
    file: Annotated[str, typer.Argument(help="Prompt file, or hub:ID for a data set.")],
    column: Annotated[str | None, typer.Option(help="Column that holds the prompt.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column that holds the category.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check a prompt file and say what is in it."""
    from specbench.report.replay_tables import workload_tables
    from specbench.workload import load_workload, profile

    loaded = load_workload(file, column=column, category_column=category_column)
    found = profile(loaded)
    if as_json:
        cautions = [asdict(caution) for caution in loaded.cautions]
        typer.echo(
            json.dumps(
                {"source": loaded.source, "sha256": loaded.sha256, "profile": asdict(found), "warnings": cautions}
            )
        )
        return
    print_parts(workload_tables(loaded, found))
