"""`specbench check`: a run's counts against those of an independent implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.app import app
from specbench.cli.options import AsJson, Grouped, Keys, Own, Quiet, RunsIn, with_settings
from specbench.cli.show import print_json, print_parts, run_folder
from specbench.errors import ConfigError

STRICT_EXIT = {"same": 0, "rounding": 0, "differs": 3, "undecided": 4}


@app.command("check", cls=Grouped)
@with_settings(
    "check",
    limit=Own(help="Check at most N prompts.", unset="8, or 24 when sampling"),
    gamma=Own(help="Some of the run's draft lengths: 1,4.", unset="all"),
    system_prompt=Own(help="The run's own, which it keeps only as a hash."),
)
def check(
    keys: Keys,
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, or @1.  [default: the newest with a wall clock]")
    ] = None,
    against: Annotated[
        str, typer.Option(help="Who counts again; only transformers.", rich_help_panel="decision")
    ] = "transformers",
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 3 if counts differ, 4 if undecided.", rich_help_panel="decision"),
    ] = False,
) -> None:
    """Count a run's acceptance again with transformers. Its own assisted generation, compared round by round."""
    from specbench.kinds import parse_gammas

    if against != "transformers":
        raise ConfigError(f"{against!r} cannot be compared with", where="--against", hint="Use transformers.")
    limit, gamma = keys["limit"], keys["gamma"]
    if limit is not None and limit < 1:
        raise ConfigError(f"{limit} prompts are none", where="--limit", hint="Give 1 or more.")
    try:
        gammas = None if gamma is None else parse_gammas(gamma)
    except ValueError as error:
        raise ConfigError(str(error), where="--gamma") from None
    folder = run_folder(run, out, timed=True)
    from specbench.run.progress import RunProgress
    from specbench.verify.check import Asked
    from specbench.verify.check import check as check_run

    asked = Asked(limit, gammas, keys["system_prompt"], frozenset(keys["trust_remote_code"] or ()))
    with RunProgress(quiet=quiet) as progress:
        found = check_run(folder, asked, progress)
    if as_json:
        print_json(found)
    else:
        from specbench.report.tables import check_tables

        print_parts(check_tables(found), folder)
    if strict:
        raise typer.Exit(STRICT_EXIT[found.agreement])
