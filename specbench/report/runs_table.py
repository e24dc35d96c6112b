"""The list of runs as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import RenderableType

from specbench import text
from specbench.analysis.summarise import ListedRun
from specbench.report.layout import Block, Column, fit, note, readable, table


def runs_table(runs: Sequence[ListedRun]) -> RenderableType:
    return Block(partial(_table, runs))


def _table(runs: Sequence[ListedRun], width: int, plain: bool) -> Iterator[RenderableType]:
    def column(name: str, cell: Callable[[ListedRun], str], gives_way: int = 0, *, left: bool = True) -> Column:
        return Column(name, name, tuple(readable(cell(run), plain) for run in runs), gives_way, left=left)

    columns = [
        column("run", lambda run: f"@{run.number}"),
        column("verdict", _verdict),
        column("speedup", _speedup, 5),
        column("draft", _draft, 4),
        column("engine", lambda run: run.engine or text.UNKNOWN, 3),
        column("noise", lambda run: "" if run.noise_floor is None else f"{run.noise_floor:.1%}", 2, left=False),
        column("target", lambda run: run.target or text.UNKNOWN, 6),
        column("folder", lambda run: Path(run.folder).name, 1),
    ]
    kept = fit(columns, width)
    yield table(kept, plain)
    hidden = [one.name for one in columns if one.name not in {each.name for each in kept}]
    if hidden:
        yield note(f"Not shown at this width: {', '.join(hidden)}.", width, plain)


def _verdict(run: ListedRun) -> str:
    """The verdict, or why there is none."""
    if run.problem is not None:
        return "unreadable"
    done = "" if run.status in ("finished", None) else f", {run.status}"
    return f"{run.verdict or _NO_VERDICT.get(run.command or '', 'none yet')}{done}"


_NO_VERDICT = {"probe": "costs alone", "replay": "acceptance alone"}


def _speedup(run: ListedRun) -> str:
    return "" if run.speedup is None else text.estimate(run.speedup, run.speedup_low, run.speedup_high)


def _draft(run: ListedRun) -> str:
    if run.draft is not None:
        return f"{run.draft}, gamma {run.gamma}"
    return ", ".join(run.drafts)
