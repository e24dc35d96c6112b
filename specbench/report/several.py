"""One brief over several runs: engines, drafts, batches or loads of the same question, side by side.

Every run keeps its own verdict. The page rests on the runs that were measured on a server, where there are any, since a
target that runs in this process serves nobody.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.checked import checks
from specbench.analysis.compare import Comparison, compared
from specbench.analysis.contract import Choice, DraftResult, Summary
from specbench.analysis.doubts import doubts
from specbench.analysis.facts import Facts, shell
from specbench.analysis.steps import next_steps
from specbench.analysis.summarise import summarise
from specbench.errors import StoreError
from specbench.records import FEW_PROMPTS, Finding, Reason
from specbench.report.brief import BRIEF_FILE, provenance, write_pages, writing
from specbench.report.canvas import save
from specbench.report.figures import draw_runs
from specbench.report.page import FIGURES_FOLDER
from specbench.report.settings.section import settings_of
from specbench.store import StoredRun

TITLE = "Should we decode speculatively?"


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs; `draft` is the one that its verdict is about, `head` what the verdict rests on."""

    name: str
    stored: StoredRun
    summary: Summary
    draft: DraftResult
    head: Choice | DraftResult

    @property
    def prompts(self) -> int:
        return self.summary.choice.prompts if self.summary.choice else self.draft.best.prompts

    @property
    def facts(self) -> Facts:
        return self.summary.facts


def runs_of(stored: Sequence[StoredRun]) -> list[Run]:
    """Those on a server first. Raises StoreError where one has no measurement, or one folder is named twice."""
    names = [each.folder.name for each in stored]
    found = []
    for each in stored:
        if sum(each.folder.resolve() == other.folder.resolve() for other in stored) > 1:
            raise StoreError("This run is named twice", where=str(each.folder), hint="Name each run once.")
        summary = summarise(each)
        draft, head = summary.recommended, summary.headline
        assert draft is not None and head is not None  # summarise refuses a run without a measurement
        name = each.folder.name if names.count(each.folder.name) == 1 else str(each.folder)
        found.append(Run(text.clean(name), each, summary, draft, head))
    return sorted(found, key=lambda run: not run.facts.served)


def write_several(stored: Sequence[StoredRun], folder: Path) -> tuple[list[Run], Path]:
    """Write `brief.md`, `brief.html` and `figures/` to `folder`; the runs and the path of the Markdown. Raises
    StoreError where that cannot be done."""
    runs = runs_of(stored)
    with writing(folder):
        save(draw_runs(runs), folder / FIGURES_FOLDER, "runs")
    briefs = [run.stored.folder / BRIEF_FILE for run in runs]
    found = values(runs, [_link(brief, folder) if brief.is_file() else "" for brief in briefs])
    description = "; ".join(f"{run.name}: {run.head.verdict}, {text.speedup(run.head.speedup)}" for run in runs)
    return runs, write_pages(folder, "several.j2", found, TITLE, description)


def in_short(runs: Sequence[Run]) -> str:
    """For a terminal: each run's verdict in a line."""
    return "\n".join(
        f"{run.head.verdict}  {run.name}: {run.draft.draft}, "
        f"{text.estimate(run.head.speedup, run.head.speedup_low, run.head.speedup_high)} ({run.summary.engine})"
        for run in runs
    )


def _link(brief: Path, folder: Path) -> str:
    return Path(os.path.relpath(brief.resolve(), folder.resolve())).as_posix()


def _between(runs: Sequence[Run]) -> list[tuple[Run, Run, Comparison | None]]:
    """Each pair of runs, the server told against what ran in process; None where they share nothing."""
    pairs: list[tuple[Run, Run, Comparison | None]] = []
    for b, a in combinations(runs, 2):
        try:
            pairs.append((a, b, compared(a.stored, b.stored)))
        except StoreError:
            pairs.append((a, b, None))
    return pairs


def values(runs: Sequence[Run], links: Sequence[str]) -> dict[str, Any]:
    """What several.j2 needs; `links` lead to each run's own brief, and are empty where there is none."""
    first = runs[0].summary
    settings = settings_of(first)
    split = bool(settings and settings.routing)
    own = doubts(first, engines=bool(settings and settings.engines), split=split)
    marked = [each for each in own if each.code in _MARKED]
    counts = [n for run in runs for n in (run.prompts, *(each.prompts for each in run.draft.by_speedup))]
    few = [Finding("few-prompts", "note", _FEW)] if min(counts) < FEW_PROMPTS else []
    return {
        "title": TITLE,
        "runs": runs,
        "served": [run for run in runs if run.facts.served],
        "categories": list(dict.fromkeys(row.category for run in runs for row in run.draft.by_speedup)),
        "between": _between(runs),
        "doubts": [*few, *marked, *_across(runs)],
        "steps": next_steps(first),
        "settings": settings,
        "checks": _checks(runs),
        "links": [(run.name, link) for run, link in zip(runs, links, strict=True) if link],
        "provenance": [(run.name, provenance(run.summary)) for run in runs],
    }


# What the page of several runs marks: of one run's doubts, those behind its settings and steps.
_MARKED = (
    "elsewhere",
    "traffic-mix",
    "other-engines",
    "split-servers",
    "one-more-token",
    "prompts-to-settle",
    "what-if",
)


# Of prompts that are marked as few, whatever they are.
_FEW: dict[str, Any] = {"whole": None, "categories": {}, "lengths": 0, "enough": FEW_PROMPTS, "batch": 1}


def _across(runs: Sequence[Run]) -> list[Finding]:
    """What is particular to several runs on one page."""
    found = [Finding("one-after-the-other", "note")]
    if len({(run.facts.precision, run.facts.target.name) for run in runs}) > 1:
        found.append(Finding("other-weights", "note"))
    short = [run.name for run in runs if not run.facts.finished]
    if short:
        found.append(Finding("not-finished", "note", {"runs": short}))
    return found


def _checks(runs: Sequence[Run]) -> list[tuple[Reason, str, str]]:
    """(what it tells, of which run, command): the runs against each other, and each run counted again."""
    folders = [text.clean(run.stored.folder) for run in runs]
    pairs = [(a, b) for b, a in combinations(folders, 2)]
    found = [(Reason("side-by-side", {"runs": pair}), "", shell(["specbench", "compare", *pair])) for pair in pairs]
    for run, folder in zip(runs, folders, strict=True):
        found += [(what, run.name, command) for what, command in checks(run.facts, folder)[:1]]
    return found
