"""The measurement plan: what a team agrees on before anything is measured, as one page of Markdown.

Every number comes from the Plan, its policy and the pilot's folder. No prompt text is shown.
"""

from __future__ import annotations

from pathlib import Path

from specbench import text
from specbench.analysis.facts import MANY_CUT, Facts
from specbench.analysis.plan import OWN_SPREAD, Plan, amounts, minutes_for
from specbench.analysis.stops import STATES, any_time, before_the_sweep, read_evidence, too_few
from specbench.analysis.summarise import summarise
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.report.dialect import UNLINKED, full_stop, part, upper_first
from specbench.report.page import markdown
from specbench.report.plan.commands import FILE, on_shipped_prompts, steps
from specbench.store import StoredRun
from specbench.workload.cautions import TOLERATED_SHARE

TITLE = "# Measurement plan"


def plan_document(plan: Plan, policy: Policy, stored: StoredRun | None = None) -> str:
    """The page, from the plan, its policy and its pilot (None without one); the same three give the same text. Raises
    StoreError or ConfigError where the pilot cannot be summarised."""
    pilot = None
    if stored is not None:
        pilot = read_evidence(stored, summarise(stored), plan)
    facts = pilot.facts if pilot else None
    found = amounts(plan, policy.mix)
    each = facts.batch_size if facts else 1
    requests = None if found.prompts is None else found.prompts * each
    values = {
        "plan": plan,
        "policy": policy,
        "found": found,
        "facts": facts,
        "summary": pilot.summary if pilot else None,
        "shipped": stored is not None and on_shipped_prompts(stored),
        "each": each,
        "requests": requests,
        "early": [*any_time(plan, pilot), too_few(plan, found.prompts, pilot)],
        "late": list(before_the_sweep(plan, policy, pilot)),
        "states": STATES,
        "steps": steps(plan, policy, stored, requests),
        "assumed": _assumed(plan, facts),
        "file": FILE,
        "exactly": text.exactly,
        "speedup": text.asked,
        "minutes_for": minutes_for,
        "least": MIN_PROMPTS,
        "most": MAX_PROMPTS,
        "own_spread": OWN_SPREAD,
        "many_cut": MANY_CUT,
        "repeated": text.exactly(TOLERATED_SHARE),
    }
    return markdown("plan.j2", values, UNLINKED)


def write_document(page: str, path: Path) -> None:
    """Write the page to `path`. Raises StoreError where something else is there, or it cannot be written."""
    try:
        if path.exists() and not path.read_bytes().startswith(TITLE.encode()):
            raise StoreError(
                "There is a file already that is no measurement plan",
                where=str(path),
                hint="Give --write another name.",
            )
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"Cannot write the plan: {error.strerror}", where=str(path), hint="Give --write another name."
        ) from None


def _assumed(plan: Plan, facts: Facts | None) -> list[tuple[str, str]]:
    """(assumption, what would change it): the plan's own, then those of this page."""
    rows = [(full_stop(upper_first(part(a, "claim", UNLINKED))), part(a, "change", UNLINKED)) for a in plan.assumed]
    rows.append(
        (
            f"A run of the planned size gets what it is for in {text.exactly(plan.chance)} of cases.",
            "More prompts: the upper end of each range.",
        )
    )
    if facts is not None and facts.cut_share is not None and facts.cut_share > MANY_CUT:
        rows.append(
            (
                f"Answers go on as they begin: the pilot cut {text.percent(facts.cut_share)} of them (measured).",
                "A pilot with a larger `--max-new-tokens`.",
            )
        )
    return [
        *rows,
        ("Requests of the window stand for those to come.", "A new product, season or prompt: draw and measure anew."),
        ("Requests do not depend on each other.", "Many from one session or one user: a wider window."),
        ("Replaced names are as easy to draft as real ones.", "The check of section 5."),
    ]
