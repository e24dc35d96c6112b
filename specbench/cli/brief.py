"""`specbench brief`, the decision brief of one run or of several, and `specbench explain`: what speculative decoding
is, what a run says about it, and what the words mean.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
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
    exit_on,
    option,
    print_found,
    print_json,
    run_folder,
    with_settings,
)
from specbench.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from specbench.analysis.contract import Summary
    from specbench.api import Run
    from specbench.records import Call
    from specbench.report.explain.explain import Explanation, Level
    from specbench.store import StoredRun


_NAME_WIDTH = 100

FORMATS = ("markdown", "html", "github")


@app.command("brief", cls=Grouped)
@with_settings("brief", mix=Own(unset="the run's"))
def brief(
    keys: Keys,
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders or @1; several give one brief.  [default: the newest]")
    ] = None,
    to: Annotated[
        Path | None, option("output", "Folder to write to.  [default: the run's; for several a new one under --out]")
    ] = None,
    out: RunsIn = Path("reports"),
    form: Annotated[
        str | None,
        option(
            "output",
            "On stdout: markdown, html, or github, five lines and a picture for a pull request.  "
            "[default: a few lines on a terminal, else markdown]",
            "--format",
        ),
    ] = None,
    as_json: Annotated[bool, option("output", "One JSON object on stdout; nothing is written.", "--json")] = False,
    open_page: Annotated[bool, option("output", "Open the HTML page in a browser.", "--open")] = False,
    alerts: Annotated[
        bool,
        option(
            "output", "Also alert rules for Prometheus and a Grafana dashboard, of one run on a server.", "--alerts"
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Write the decision brief of a run, or of several. Markdown, HTML and figures, from the run folders alone; a
    policy flag here goes before the run's."""
    shown = _format(form, as_json)
    if alerts and (as_json or len(run or ()) > 1):
        raise ConfigError(
            "Alerts are written beside the brief of one run", where="--alerts", hint="Name the run, without --json."
        )
    folders = [run_folder(each, out, timed=True) for each in run or (None,)]
    if "numpy" not in sys.modules:  # its matrices here are not worth several threads, which wait for each other busily
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from specbench.api import load_run

    runs = [load_run(folder, **keys) for folder in folders]
    if len(runs) == 1 and runs[0].stored.run.answers is not None:
        _refuse_for_acceptance(strict, alerts, shown)
        _acceptance(runs[0].stored, to, shown, as_json, open_page)
        return
    if len(runs) == 1:
        call = _one(runs[0], to, shown, as_json, open_page)
    else:
        call = _several([each.stored for each in runs], to, out, shown, as_json, open_page)
    if alerts:
        rules, dashboard = runs[0].write_alerts(to)
        typer.echo(
            f"Alert rules in {rules}, for `rule_files` of Prometheus; {dashboard.name} is to import in Grafana",
            err=True,
        )
    if strict:
        exit_on(call)


def _format(asked: str | None, as_json: bool) -> str:
    """What stdout gets: a few lines on a terminal, the text where it is piped, or what was asked for."""
    if asked is None:
        return "terminal" if sys.stdout.isatty() else "markdown"
    if asked not in FORMATS:
        raise ConfigError(f"No format {asked!r}", where="--format", hint=f"Use {', '.join(FORMATS)}.")
    if as_json:
        raise ConfigError("Only one can be on stdout", where="--json and --format", hint="Leave one out.")
    return asked


def _refuse_for_acceptance(strict: bool, alerts: bool, shown: str) -> None:
    """What a page without a verdict cannot give."""
    for asked, where in ((strict, "--strict"), (alerts, "--alerts"), (shown == "github", "--format github")):
        if asked:
            raise ConfigError(
                "Recorded answers have no verdict", where=where, hint="Leave it out, or measure one: specbench sweep."
            )


def _acceptance(stored: StoredRun, to: Path | None, shown: str, as_json: bool, open_: bool) -> None:
    """Of recorded answers there is acceptance, and no verdict."""
    from specbench.api import recorded_acceptance

    found = recorded_acceptance(stored, stored.run.config.gamma)
    if as_json or shown == "terminal":
        print_found(found, "recorded", as_json)
    if not as_json:
        from specbench.report.brief import write_acceptance_brief

        _shown(write_acceptance_brief(stored, found, to), shown, "NO VERDICT", open_)


def _one(run: Run, to: Path | None, shown: str, as_json: bool, open_: bool) -> Call:
    """Write, or print, the brief of one run; the verdict on the whole run."""
    from specbench.report import brief as pages

    if as_json:
        print_json(run.summary, break_evens=_break_evens(run.summary))
        return run.verdict
    path = run.write_brief(to)
    if shown == "terminal":
        typer.echo(pages.in_short(run.summary))
    elif shown == "github":
        typer.echo(pages.for_github(run.summary, path.parent))
    _shown(path, shown, run.verdict, open_)
    return run.verdict


def _several(stored: Sequence[StoredRun], to: Path | None, out: Path, shown: str, as_json: bool, open_: bool) -> Call:
    """The same of several runs; the verdict is that of the first run on a server, or of the first."""
    from specbench.report.dialect import json_of
    from specbench.report.several import in_short, runs_of, write_several

    if shown == "github":
        raise ConfigError("A pull request gets one run", where="--format github", hint="Name one run.")
    if as_json:
        runs = runs_of(stored)
        print_json(
            {"runs": [json_of(run.summary) | {"break_evens": _break_evens(run.summary)} for run in runs]},
        )
        return runs[0].head.verdict
    runs, path = write_several(stored, to or out / _name(stored))
    if shown == "terminal":
        typer.echo(in_short(runs))
    _shown(path, shown, runs[0].head.verdict, open_)
    return runs[0].head.verdict


def _shown(path: Path, shown: str, call: str, open_: bool) -> None:
    html = path.with_suffix(".html")
    if shown == "terminal":
        typer.echo(f"\nThe brief: {html} (--open shows it), {path.name}")
    elif shown in ("markdown", "html"):
        typer.echo((html if shown == "html" else path).read_text(encoding="utf-8"))
        # The page is long: what it says once more, where the reader's eyes are.
        typer.echo(f"{call}. Written to {path} and {html.name}", err=True)
    if open_:
        typer.launch(str(html))


def _break_evens(summary: Summary) -> list[dict[str, object]]:
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


# Wider lines than this are hard to read.
_WIDEST = 100


@app.command("explain", cls=Grouped)
def explain(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder, or @1.  [default: the newest; the subject itself where none is]")
    ] = None,
    basics: Annotated[bool, typer.Option("--basics", help="Speculative decoding itself, of no run.")] = False,
    level: Annotated[str, typer.Option(help="For whom: manager (no formulas) or engineer.")] = "manager",
    term: Annotated[str | None, typer.Option(help="What this word means, such as tau.")] = None,
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
        print_json(found.to_json())
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

    return explain_run(summarise(read_run(run)), checked)


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
        print_json(term)
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
