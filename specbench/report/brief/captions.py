"""The figures of a brief in words: heading, alternative text, and what each shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import DraftResult, Summary
from specbench.records import Policy
from specbench.report import readings, wording


@dataclass(frozen=True, slots=True)
class Figure:
    """One embedded figure: file stem, heading, alt text, and a reading for each draft."""

    stem: str
    heading: str
    alt: str
    readings: tuple[str, ...]


def captions(summary: Summary, policy: Policy) -> list[Figure]:
    """One for each figure that the Summary has data for."""
    from specbench.report.figures import LOADS, SURVIVAL, available

    drafts = summary.drafts
    known = {
        "speedup": Figure(
            "speedup",
            "Speedup against gamma",
            "Speedup over the target alone, by gamma",
            _readings(drafts, lambda draft: readings.read_speedup(draft, policy)),
        ),
        SURVIVAL: Figure(
            SURVIVAL,
            "Survival by position",
            "Share of rounds whose first j drafted tokens were all accepted, by position j",
            _readings([draft for draft in drafts if any(row.survival for row in draft.gammas)], readings.read_survival),
        ),
        "round_time": Figure(
            "round_time",
            "Where a round's time goes",
            "Milliseconds per round for drafting, verifying and the rest, by gamma, beside one step of the target",
            _readings(
                [draft for draft in drafts if any(row.round_time for row in draft.gammas)], readings.read_round_time
            ),
        ),
        "categories": Figure(
            "categories",
            "Speedup by category",
            "Speedup over the target alone, by category",
            _readings([draft for draft in drafts if wording.by_speedup(draft)], readings.read_categories),
        ),
        LOADS: Figure(
            LOADS,
            "Speedup against concurrency",
            "Speedup over the target alone under the same load, by requests at a time",
            _readings(
                [
                    draft
                    for draft in drafts
                    if any(row.draft == draft.draft and row.concurrency for row in summary.loads)
                ],
                lambda draft: readings.read_loads(summary, draft, policy),
            ),
        ),
    }
    return [known[stem] for stem in available(summary)]


def _readings(drafts: Sequence[DraftResult], read: Callable[[DraftResult], str]) -> tuple[str, ...]:
    if len(drafts) == 1:
        return (read(drafts[0]),)
    return tuple(f"{text.code(draft.draft)}: {read(draft)}" for draft in drafts)
