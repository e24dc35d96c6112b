"""`specbench compare`: two runs of the same prompts side by side, for people and for CI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import AsJson, Grouped, RunsIn, option, print_json, print_page, run_folder
from specbench.errors import ConfigError

if TYPE_CHECKING:
    from specbench.analysis.compare import Slower

SLOWER_EXIT = 5


@app.command("compare", cls=Grouped)
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Run folder, or @2: yesterday's, or that of one engine.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Run folder, or @1, to hold against it.")],
    fail_if_slower: Annotated[
        str | None, option("decision", "Exit 5 if the second is surely slower by more than this, such as 3%.")
    ] = None,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
    markdown: Annotated[bool, option("output", "Markdown on stdout instead of tables.", "--markdown")] = False,
) -> None:
    """Two runs of the same prompts: what changed, and why. With intervals."""
    limit = None if fail_if_slower is None else _share(fail_if_slower)
    from specbench.analysis.compare import compared
    from specbench.report.layout import comparison_page
    from specbench.report.page import comparison_markdown
    from specbench.store import read_run

    first, second = run_folder(first, out), run_folder(second, out)
    found = compared(read_run(first), read_run(second))
    if as_json:
        print_json(found)
    elif markdown:
        typer.echo(comparison_markdown(found))
    else:
        print_page(comparison_page(found))
    if limit is not None:
        _judged(found.slower, limit, second)


def _judged(slower: Slower | None, limit: float, second: Path) -> None:
    """What the limit was held against, on stderr: a build that passes because nothing was compared should be seen."""
    if slower is None:
        raise ConfigError(
            "nothing to hold it against: the first run's chosen draft and gamma were not measured in the second",
            where=f"--fail-if-slower, {second}",
            hint="Measure B with specbench sweep and the same --draft and --gamma.",
        )
    line = f"{slower.draft} gamma {slower.gamma}: {slower.by:.1%} fewer tokens per second"
    if slower.low is None or slower.high is None:
        typer.echo(f"{line}; too few prompts for an interval, so this tells nothing about {limit:.1%}.", err=True)
        return
    line += f" [{slower.low:.1%}, {slower.high:.1%}]"
    if slower.surely_above(limit):
        typer.echo(f"{line}: surely slower by more than {limit:.1%}.", err=True)
        raise typer.Exit(SLOWER_EXIT)
    open_ = slower.high > limit
    typer.echo(f"{line}: {'not surely' if open_ else 'surely not'} slower by more than {limit:.1%}.", err=True)


def _share(text: str) -> float:
    """`3%` or `0.03` -> 0.03."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"{text!r} is no share", where="--fail-if-slower", hint="Write 3% or 0.03.")
    return share
