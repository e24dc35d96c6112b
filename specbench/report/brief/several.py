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
from specbench.analysis.compare import compared
from specbench.analysis.contract import CategoryResult, DraftResult, Summary
from specbench.analysis.facts import Facts, read_facts
from specbench.analysis.frame import main_trials
from specbench.analysis.summarise import summarise
from specbench.errors import StoreError
from specbench.records import Call, Trial
from specbench.report import wording
from specbench.report.brief import commands, doubts, steps
from specbench.report.brief.brief import BRIEF_FILE, FIGURES_FOLDER, provenance, with_doubts, write_pages, writing
from specbench.report.settings.section import settings_of
from specbench.report.templating import Doubt
from specbench.store import StoredRun

Rows = list[tuple[str, ...]]

TITLE = "Should we decode speculatively?"


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs; `draft` is the one that its verdict is about."""

    name: str
    stored: StoredRun
    summary: Summary
    facts: Facts
    draft: DraftResult

    @property
    def call(self) -> Call:
        return self.summary.verdict

    @property
    def speedup(self) -> tuple[float, float | None, float | None]:
        """What the verdict rests on, with its interval."""
        found = self.summary.choice or self.draft
        return found.speedup, found.speedup_low, found.speedup_high

    @property
    def prompts(self) -> int:
        return self.summary.choice.prompts if self.summary.choice else wording.best_row(self.draft).prompts

    @property
    def trials(self) -> list[Trial]:
        return main_trials(self.stored)


def runs_of(stored: Sequence[StoredRun]) -> list[Run]:
    """Those on a server first. Raises StoreError where one has no measurement, or one folder is named twice."""
    names = [each.folder.name for each in stored]
    found = []
    for each in stored:
        if sum(each.folder.resolve() == other.folder.resolve() for other in stored) > 1:
            raise StoreError("This run is named twice", where=str(each.folder), hint="Name each run once.")
        summary = summarise(each)
        draft = wording.recommended(summary)
        assert draft is not None  # summarise refuses a run without a measurement
        name = each.folder.name if names.count(each.folder.name) == 1 else str(each.folder)
        found.append(Run(text.clean(name), each, summary, read_facts(each), draft))
    return sorted(found, key=lambda run: not run.facts.served)


def render_several(runs: Sequence[Run], links: Sequence[str]) -> str:
    """The page as Markdown; `links` lead to each run's own brief, and are empty where there is none."""
    first = runs[0]
    marked = [each for each in doubts.doubts(first.summary, first.facts) if each.key not in (None, "few")]
    between, notes = _between(runs)
    values: dict[str, Any] = {
        "title": TITLE,
        "verdicts": [_verdict(run) for run in runs],
        "rests_on": _rests_on(runs),
        "names": [text.code(run.name) for run in runs],
        "rows": _rows(runs),
        "categories": _categories(runs),
        "between": between,
        "cautions": [*notes, *_cautions(runs)],
        "first": text.code(first.name),
        "steps": steps.next_steps(first.summary, first.facts, first.trials),
        "settings": settings_of(first.summary, first.facts),
        "checks": _checks(runs),
        "figures_folder": FIGURES_FOLDER,
        "links": [(text.code(run.name), link) for run, link in zip(runs, links, strict=True) if link],
        "provenance": [(text.code(run.name), provenance(run.stored, run.summary, run.facts)) for run in runs],
    }
    return with_doubts("several.md.j2", values, [*marked, *_across(runs)])


def write_several(stored: Sequence[StoredRun], folder: Path) -> tuple[list[Run], Path]:
    """Write `brief.md`, `brief.html` and `figures/` to `folder`; the runs and the path of the Markdown. Raises
    StoreError where that cannot be done."""
    from specbench.report.curves import write_runs_figure

    runs = runs_of(stored)
    with writing(folder):
        write_runs_figure(runs, folder / FIGURES_FOLDER)
    links = [_link(run.stored.folder / BRIEF_FILE, folder) for run in runs]
    return runs, write_pages(folder, render_several(runs, links), TITLE)


def _link(brief: Path, folder: Path) -> str:
    """From the page to a run's own brief, where there is one."""
    return Path(os.path.relpath(brief.resolve(), folder.resolve())).as_posix() if brief.is_file() else ""


def _verdict(run: Run) -> str:
    """One run's verdict in a sentence."""
    draft, gamma = text.code(run.draft.draft), run.draft.best_gamma
    advice = {
        "GO": f"turn {draft} on, at gamma {gamma}",
        "NO-GO": "leave speculation off",
        "UNCLEAR": f"{draft} is not settled",
    }[run.call]
    value, low, high = run.speedup
    kind = "end to end" if run.facts.policy.metric == "e2e" else "decoding"
    measured = text.measured(run.prompts, run.summary.batch_size)
    load = wording.load(run.facts)
    return (
        f"**{run.call}: {text.code(run.name)}, {advice}.** {text.escape(run.summary.engine)}, {load}: {draft} "
        f"ran {text.estimate(value, low, high)} as fast as the target alone, {kind} (measured over {measured}"
        f"{wording.few_mark(run.prompts)}; asked for {text.speedup(run.facts.policy.min_speedup)})."
    )


def _rests_on(runs: Sequence[Run]) -> str:
    """Which of the verdicts to act on."""
    served = [run for run in runs if run.facts.served]
    if not served:
        return (
            "All of them were measured in process, on no server: take a GO as a reason to measure on the engine that "
            "serves you."
        )
    calls = {run.call for run in served}
    names = text.join(text.code(run.name) for run in served)
    if len(served) < len(runs):
        head = f"Act on {names}: measured on a server. The others ran in process, where a round costs something else."
    else:
        head = "Act on the run of the engine and the load that serve you."
    if len(calls) > 1:
        head += " The servers differ, so the verdict is one for each of them, not one for all."
    return head


def _rows(runs: Sequence[Run]) -> Rows:
    """What each run measured: one line a number, one column a run."""
    rows = [wording.best_row(run.draft) for run in runs]
    lines: list[tuple[str, list[str]]] = [
        ("verdict", [run.call for run in runs]),
        ("engine", [text.escape(run.summary.engine) for run in runs]),
        ("machine", [text.escape(run.summary.hardware) for run in runs]),
        ("target", [wording.model_name(run.facts.target) for run in runs]),
        ("precision", [run.facts.precision or text.UNKNOWN for run in runs]),
        ("load", [wording.load(run.facts) for run in runs]),
        ("sampling", [wording.sampling(run.facts.sampling) for run in runs]),
        ("chat template given", [text.code(given) if given else text.UNKNOWN for given in map(_given, runs)]),
        ("prompts", [f"{run.prompts:,}{wording.few_mark(run.prompts)}" for run in runs]),
        ("draft, gamma", [f"{text.code(run.draft.draft)}, {run.draft.best_gamma}" for run in runs]),
        ("speedup", [text.estimate(*run.speedup) for run in runs]),
        ("tokens/s, target alone", [f"{run.draft.baseline_tokens_per_s:.1f}" for run in runs]),
        ("tokens/s, with the draft", [f"{row.tokens_per_s:.1f}" for row in rows]),
        ("tau", [text.digits(row.tokens_per_round) for row in rows]),
        ("round's cost, steps", [text.digits(row.round_steps) for row in rows]),
        ("prompts slower", [text.percent(row.slower_share) for row in rows]),
        ("same text", [text.out_of(row.identical_prompts, row.prompts) for row in rows]),
        ("noise floor", [_floor(run.summary.noise_floor) for run in runs]),
    ]
    return [(name, *cells) for name, cells in lines if set(cells) != {text.UNKNOWN}]


def _given(run: Run) -> str:
    return text.template_kwargs(run.facts.template_kwargs)


def _floor(share: float | None) -> str:
    return text.UNKNOWN if share is None else f"{share:.1%}"


def _categories(runs: Sequence[Run]) -> Rows:
    """Each run's verdict and speedup by category, of the draft that its own verdict is about."""
    found = [{row.category: row for row in wording.by_speedup(run.draft)} for run in runs]
    names = list(dict.fromkeys(name for each in found for name in each))
    return [(text.escape(name), *(_category(each.get(name)) for each in found)) for name in names]


def _category(row: CategoryResult | None) -> str:
    if row is None:
        return text.UNKNOWN
    few = wording.few_mark(row.prompts) if row.verdict != "UNCLEAR" else ""
    return f"{row.verdict} {text.estimate(row.speedup, row.speedup_low, row.speedup_high)}{few}"


def _between(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """For each pair of runs why they differ, draft by draft, and what to know of the comparison."""
    told, notes = [], []
    for b, a in combinations(runs, 2):  # the server is told against what ran in process
        pair = f"{text.code(a.name)} and {text.code(b.name)}"
        try:
            found = compared(a.stored, b.stored)
        except StoreError:
            told.append((pair, ["No draft at one gamma over one prompt in common, so nothing to hold together."]))
            continue
        lines = [f"{text.code(each.draft)}: {text.escape(each.reason)}" for each in found.drafts]
        told.append((f"{pair}, the same {text.count(found.prompts, 'prompt')}", lines))
        notes += [f"{text.code(w.code)} ({pair}): {text.escape(text.sentence(w.message))}" for w in found.warnings]
    return told, notes


def _cautions(runs: Sequence[Run]) -> list[str]:
    return [f"{text.code(run.name)}, {line}" for run in runs for line in doubts.cautions(run.summary.warnings)]


def _across(runs: Sequence[Run]) -> list[Doubt]:
    """What is particular to several runs on one page."""
    found = [
        Doubt(
            "few prompts",
            f"Fewer than {wording.FEW_PROMPTS} prompts stand behind what is marked so; the runs' own briefs list them.",
            f"{wording.FEW_PROMPTS} or more prompts of each kind.",
            "few",
        ),
        Doubt(
            "measured",
            "The runs were measured one after the other: tokens per second of two runs differ by what the machine did "
            "in between as well. Speedups do not, each has its own baseline.",
            "measuring them in turns on one quiet machine.",
        ),
    ]
    if len({(run.facts.precision, run.facts.target.name) for run in runs}) > 1:
        found.append(
            Doubt(
                "measured",
                "The weights are not the same numbers: the runs have other models or precisions, which changes texts "
                "and acceptance, if only a little.",
                "the same weights in all runs.",
            )
        )
    short = [run for run in runs if not run.facts.finished]
    if short:
        listed = text.join(text.code(run.name) for run in short)
        found.append(Doubt("measured", f"Not finished: {listed}.", "the same command again, which continues it."))
    return found


def _checks(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The runs against each other, and each run counted again."""
    folders = [text.clean(run.stored.folder) for run in runs]
    found = [
        (
            f"{text.code(a)} and {text.code(b)} side by side, with intervals.",
            commands.shell(["specbench", "compare", a, b]),
        )
        for b, a in combinations(folders, 2)
    ]
    for run, folder in zip(runs, folders, strict=True):
        found += [
            (f"{text.code(run.name)}: {what}", command) for what, command in commands.checks(run.facts, folder)[:1]
        ]
    return found
