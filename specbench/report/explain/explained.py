"""A run explained in its own numbers, which are those of its Summary."""

from __future__ import annotations

from specbench.analysis.contract import Summary
from specbench.report.brief.doubts import doubts
from specbench.report.explain.engineer import engineer_values
from specbench.report.explain.explain import Explanation, Level, with_words
from specbench.report.explain.manager import manager_values
from specbench.report.explain.story import story
from specbench.report.marks import in_order, unmarked
from specbench.report.templating import template
from specbench.store import StoredRun


def explain_run(stored: StoredRun, summary: Summary, level: Level) -> Explanation:
    """What the run says: for a manager in seconds, money and risk, for an engineer step by step."""
    found = story(stored, summary)
    values = manager_values(found) if level == "manager" else engineer_values(found)
    page = template(f"explain_run_{level}.md.j2")
    # Rendered once to see which doubts the text refers to, and once more with these.
    listed = in_order(doubts(summary, found.facts), page.render(values, doubts=[]))
    return with_words(level, summary.run, unmarked(page.render(values, doubts=listed)))
