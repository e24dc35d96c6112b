"""`specbench explain`: what speculative decoding is, what a run says about it, and what the words mean."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.app import app
from specbench.cli.options import AsJson, Grouped, RunsIn
from specbench.cli.show import run_folder
from specbench.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from specbench.report.explain.explain import Explanation, Level

# Wider lines than this are hard to read.
_WIDEST = 100


@app.command("explain", cls=Grouped)
def explain(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, or @1.  [default: the newest; the subject itself where none is]")
    ] = None,
    basics: Annotated[bool, typer.Option("--basics", help="The subject itself, of no run.")] = False,
    level: Annotated[str, typer.Option(help="For whom: manager (no formulas) or engineer.")] = "manager",
    term: Annotated[str | None, typer.Option(help="Only what this word means, such as tau.")] = None,
    out: RunsIn = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """What a run's numbers mean, or what speculative decoding is."""
    if term is not None:
        _show_term(term, run, as_json)
        return
    if basics and run is not None:
        raise ConfigError("The subject is the same for every run", where="--basics", hint="Leave out the run, or it.")
    folder = None if basics else _run(run, out)
    found = _explanation(folder, level)
    if as_json:
        typer.echo(json.dumps(found.to_json(), allow_nan=False))
        return
    _print(found.text)
    if folder is None:
        line = (
            "For the newest run's numbers: specbench explain"
            if _run(None, out)
            else "No run yet, so this is the subject itself."
        )
        typer.echo(line, err=True)


def _run(named: Path | None, out: Path) -> Path | None:
    """The run that is meant; None where none is there yet."""
    try:
        return run_folder(named, out, timed=True)
    except StoreError:
        if named is not None:
            raise
        return None


def _explanation(run: Path | None, level: str) -> Explanation:
    checked = _level(level)
    if run is None:
        from specbench.report.explain import explain as pages

        return pages.explain(checked)
    from specbench.analysis.summarise import summarise
    from specbench.report.explain.explain import explain_run
    from specbench.store import read_run

    stored = read_run(run)
    return explain_run(stored, summarise(stored), checked)


def _level(level: str) -> Level:
    levels: dict[str, Level] = {"manager": "manager", "engineer": "engineer"}
    if level not in levels:
        raise ConfigError(f"No level {level!r}", where="--level", hint="Use manager or engineer.")
    return levels[level]


def _show_term(word: str, run: Path | None, as_json: bool) -> None:
    from specbench.report.explain.glossary import find, term_markdown

    if run is not None:
        raise ConfigError("A word means the same in every run", where="--term", hint="Leave out the run, or --term.")
    term = find(word)
    if as_json:
        typer.echo(json.dumps(asdict(term)))
    else:
        _print(term_markdown(term))


def _print(markdown: str) -> None:
    """Laid out on a terminal; anywhere else the Markdown itself."""
    from rich.console import Console

    console = Console()
    # An ASCII terminal has no bullets, and its reader can read Markdown.
    if not sys.stdout.isatty() or console.options.ascii_only:
        typer.echo(markdown, nl=False)
        return
    from rich.markdown import Markdown

    console.print(Markdown(_without_links(markdown)), width=min(console.width, _WIDEST))


def _without_links(markdown: str) -> str:
    """Links within the text, and their anchors, lead nowhere on a terminal."""
    return re.sub(r'\[([^\]\n]+)\]\(#[\w-]+\)|<a id="[\w-]+"></a>', r"\1", markdown)
