"""`specbench doctor`: is the set-up sane, before anything is measured? And `specbench check`: the counts of a run
against those of an independent implementation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import (
    AsJson,
    ConfigFile,
    Grouped,
    Keys,
    Own,
    Quiet,
    RunsIn,
    given,
    option,
    print_found,
    run_folder,
    sayer,
    with_settings,
)
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
    against: Annotated[str, option("decision", "Who counts again; only transformers.")] = "transformers",
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    strict: Annotated[bool, option("decision", "Exit 3 if counts differ, 4 if undecided.", "--strict")] = False,
) -> None:
    """Count a run's acceptance again with transformers. Its own assisted generation, compared round by round."""
    if against != "transformers":
        raise ConfigError(f"{against!r} cannot be compared with", where="--against", hint="Use transformers.")
    wanted = given(keys)
    folder = run_folder(run, out, timed=True)
    from specbench.run.progress import RunProgress
    from specbench.verify.check import Asked
    from specbench.verify.check import check as check_run

    own_code = frozenset(wanted.get("trust_remote_code", ()))
    asked = Asked(wanted.get("limit"), wanted.get("gamma"), wanted.get("system_prompt"), own_code)
    with RunProgress(quiet=quiet) as progress:
        found = check_run(folder, asked, progress)
    print_found(found, "checked", as_json, folder)
    if strict:
        raise typer.Exit(STRICT_EXIT[found.agreement])


BROKEN_EXIT = 1


@app.command("doctor", cls=Grouped)
@with_settings(
    "doctor",
    draft=Own(help="Draft model id or directory; repeatable."),
    limit=Own(default=4),
    max_new_tokens=Own(default=24),
    temperature=Own(help="Above 0 how drafts are drawn is checked too."),
)
def doctor(keys: Keys, config: ConfigFile = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Find a broken set-up before a sweep calls it a poor draft. Exits 1 if something is broken."""
    from specbench.config import load_config
    from specbench.shipped import shipped

    settings = load_config(config or shipped("configs/default.yaml"), keys)
    from specbench.verify.doctor import run_doctor

    found = run_doctor(settings, sayer(quiet))
    print_found(found, "examined", as_json)
    if found.broken:
        raise typer.Exit(BROKEN_EXIT)
