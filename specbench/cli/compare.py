"""`specbench compare`: two runs of the same prompts side by side, for people and for CI."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.app import app
from specbench.cli.show import print_parts
from specbench.errors import ConfigError

SLOWER_EXIT = 5


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Run folder, such as yesterday's or that of one engine.")],
    second: Annotated[Path, typer.Argument(help="Run folder to hold against it.")],
    fail_if_slower: Annotated[
        str | None, typer.Option(help="Exit 5 if the second is surely slower by more than this, such as 3%.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown on stdout instead of tables.")] = False,
) -> None:
    """Two runs of the same prompts: what changed, and why. With intervals."""
    limit = None if fail_if_slower is None else _share(fail_if_slower)
    from specbench.report.compare.comparison import compared, slower_by
    from specbench.report.compare.tables import comparison_markdown, comparison_tables
    from specbench.store import read_run

    found = compared(read_run(first), read_run(second))
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
    elif markdown:
        typer.echo(comparison_markdown(found))
    else:
        print_parts(comparison_tables(found))
    slower = slower_by(found)
    if limit is not None and slower is not None and slower.surely_above(limit):
        raise typer.Exit(SLOWER_EXIT)


def _share(text: str) -> float:
    """`3%` or `0.03` -> 0.03."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"{text!r} is no share", where="--fail-if-slower", cure="Write 3% or 0.03.")
    return share
