"""`specbench measure` and `specbench sweep`: one function, since one is the other with a single gamma."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import (
    AsJson,
    ConfigFile,
    Grouped,
    Keys,
    Quiet,
    Strict,
    option,
    print_json,
    show,
    show_replay,
    with_settings,
)
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.run.task import Command, Task

RUN_HELP = {
    "measure": "Time the target alone and with drafts, at one gamma.",
    "sweep": "Time the target alone and with drafts, at several gammas, and find the best.",
}


@app.command("sweep", cls=Grouped, help=RUN_HELP["sweep"])
@app.command("measure", cls=Grouped, help=RUN_HELP["measure"])
@with_settings("sweep")
def measure_or_sweep(
    ctx: typer.Context,
    keys: Keys,
    config: ConfigFile = None,
    costs: Annotated[
        Path | None, option("drafts", "Folder of a probe in this setting, instead of timing the models alone.")
    ] = None,
    replay_only: Annotated[
        bool, option("drafts", "Acceptance at every gamma from batched passes, no wall clock.", "--replay-only")
    ] = False,
    resume: Annotated[
        bool | None,
        option("output", "Demand an unfinished run, or start a new one.  [default: resume if any]", "--resume/--fresh"),
    ] = None,
    dry_run: Annotated[
        bool, option("output", "Say what would be measured and how long it takes.", "--dry-run")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    strict: Strict = False,
) -> None:
    from specbench.run.task import carry_out, task_of

    command: Command = "measure" if ctx.command.name == "measure" else "sweep"
    task = task_of(command, keys, config=config, costs=costs, resume=resume, replay_only=replay_only)
    if strict and task.replay_only:
        raise ConfigError("There is no verdict without a wall clock", where="--strict", hint="Leave it out.")
    if dry_run:
        _say_dry(task, as_json)
        return
    folder = carry_out(task, quiet=quiet)
    if task.replay_only:
        show_replay(folder, task.gammas, 0.0, as_json)
        return
    from specbench.analysis.summarise import summarise
    from specbench.store import read_run

    show(summarise(read_run(folder)), as_json, strict)


def _say_dry(task: Task, as_json: bool) -> None:
    from specbench import text
    from specbench.run.task import dry_run

    found = dry_run(task)
    if as_json:
        print_json(found)
        return
    prompts = f"{found.prompts:,} of {text.count(found.prompts_available, 'prompt')}"
    arms = f" in {found.arms} arms: {text.count(found.trials, 'trial')}" if found.arms else ", replayed at every gamma"
    typer.echo(f"{prompts}{arms}, answers of up to {found.max_new_tokens:,} tokens")
    if found.continues is not None:
        typer.echo(f"Continues {found.continues}: {found.trials_done:,} trials are done")
    if found.seconds is not None:
        typer.echo(f"About {text.duration(found.seconds)}, at the pace of {found.pace_of}")
    elif found.arms:
        typer.echo("Time: known when the models have warmed up; specbench plan counts it from a pilot")
    typer.echo("Nothing was loaded, started or written.", err=True)
