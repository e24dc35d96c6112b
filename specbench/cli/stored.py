"""Commands that read what is there: list all `runs`, `show` and `replay` one, `workload` a prompt file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import (
    AsJson,
    Grouped,
    Keys,
    Own,
    RunsIn,
    Strict,
    given,
    option,
    print_found,
    print_json,
    print_page,
    run_folder,
    show,
    show_recorded,
    show_replay,
    with_settings,
)
from specbench.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from specbench.workload import Workload

# More are counted, not listed.
_CATEGORIES_SHOWN = 20


@app.command("runs", cls=Grouped)
def runs(
    last: Annotated[int, option("output", "How many of the newest.", metavar="N")] = 20,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """Every run on a line, newest first. `@1` names the newest wherever a run folder is asked for."""
    from specbench.analysis.summarise import listed
    from specbench.store import find_runs

    if last < 1:
        raise ConfigError(f"{last} runs are none", where="--last", hint="Give 1 or more.")
    folders = find_runs(out)
    if not folders:
        raise StoreError("No run yet", where=str(out), hint="Run specbench sweep first, or name its folder with --out.")
    found = {"runs": listed(folders[:last])}
    print_found(found, "runs", as_json)
    if len(folders) > last and not as_json:
        typer.echo(f"{len(folders) - last:,} older are not shown: --last {len(folders)}", err=True)


@app.command("show", cls=Grouped)
def show_run(
    run: Annotated[Path | None, typer.Argument(help="Run folder, or @1.  [default: the newest]")] = None,
    strict: Strict = False,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """The tables of a stored run, as sweep prints them."""
    from specbench.analysis.summarise import summarise
    from specbench.store import read_run

    stored = read_run(run_folder(run, out, timed=True))
    if stored.run.answers is not None and not strict:
        show_recorded(stored, stored.run.config.gamma, 0.0, as_json)
        return
    show(summarise(stored), as_json, strict)


@app.command("replay", cls=Grouped)
@with_settings(
    "replay",
    gamma=Own(help="Draft lengths: 1..8, 1..8..2 or 1,2,4.", default="1..8"),
    cutoff=Own(default=0.0),
)
def replay(
    keys: Keys,
    run: Annotated[Path | None, typer.Argument(help="Run folder, or @1.  [default: the newest]")] = None,
    best: Annotated[bool, option("drafts", "Find the draft length and cut-off predicted fastest.", "--best")] = False,
    costs: Annotated[
        Path | None, option("drafts", "Probe folder to predict speedups with.  [default: the run's]")
    ] = None,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """Acceptance at any draft length and cut-off, from a stored run. No model is loaded."""
    wanted = given(keys)
    show_replay(run_folder(run, out), wanted["gamma"], wanted["cutoff"], as_json, best=best, costs=costs)


@app.command("workload", cls=Grouped)
@with_settings("workload")
def workload_profile(
    keys: Keys,
    file: Annotated[str, typer.Argument(help="Prompt file, or hub:ID for a data set.")],
    anonymise: Annotated[
        bool, option("output", "To share: categories and lengths alone, a JSON line a prompt.", "--anonymise")
    ] = False,
    out: Annotated[Path | None, option("output", "New file for these lines.  [default: stdout]")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a prompt file and say what is in it."""
    if out is not None and not anonymise:
        raise ConfigError("Only the outline is written to a file", where="--out", hint="Add --anonymise.")
    if anonymise and as_json:
        raise ConfigError("Only one can be on stdout", where="--json and --anonymise", hint="Leave one out.")
    from specbench.workload import load_workload, profile

    loaded = load_workload(file, **keys)
    if anonymise:
        _outline(loaded, out)
        return
    found = profile(loaded)
    if as_json:
        about = {"source": loaded.source, "sha256": loaded.sha256, "profile": found, "skipped": loaded.skipped}
        print_json(about | {"warnings": loaded.cautions})
        return
    from specbench.report.layout import TerminalPage

    print_page(TerminalPage("workload", loaded, found))


def _outline(workload: Workload, out: Path | None) -> None:
    """Lines without text on stdout or in a new file, and on stderr what is still in them."""
    from specbench.text import clean, count
    from specbench.workload.profile import outline_lines, write_new

    lines = outline_lines(workload.prompts)
    if out is None:
        typer.echo(lines, nl=False)
    else:
        write_new(lines, out)
        typer.echo(f"{count(len(workload.prompts), 'prompt')} outlined in {out}", err=True)
    categories = sorted({clean(prompt.category) for prompt in workload.prompts if prompt.category is not None})
    if categories:
        named = ", ".join(categories[:_CATEGORIES_SHOWN])
        more = "" if len(categories) <= _CATEGORIES_SHOWN else f" and {len(categories) - _CATEGORIES_SHOWN} more"
        typer.echo(f"Categories stand in it as they are, so look at them first: {named}{more}", err=True)
