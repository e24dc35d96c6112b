"""What speculative decoding is, for a manager or an engineer: Markdown that ends with the meanings of its words. What a
run says about it takes more libraries, which are imported for it alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from specbench.report.explain import glossary
from specbench.report.templating import in_order, template, unmarked

if TYPE_CHECKING:
    from specbench.analysis.contract import Summary
    from specbench.store import StoredRun

Level = Literal["manager", "engineer"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """`text` is Markdown with its Words; `words` are the glossary's terms that it uses, by name; `run` is the folder
    explained, None for speculative decoding as such."""

    level: Level
    run: str | None
    text: str
    words: tuple[glossary.Term, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self) | {"words": [{"term": term.name, "meaning": term.plain} for term in self.words]}


def explain(level: Level) -> Explanation:
    """Speculative decoding as such."""
    return with_words(level, None, template(f"explain_{level}.md.j2").render())


def with_words(level: Level, run: str | None, body: str) -> Explanation:
    """A text with each term linked at its first use to the list that is put under it."""
    used = tuple(sorted(glossary.used_in(body), key=glossary.by_name))
    return Explanation(level, run, f"{glossary.linked(body).rstrip()}\n\n## Words\n\n{glossary.words(used)}\n", used)


def explain_run(stored: StoredRun, summary: Summary, level: Level) -> Explanation:
    """What the run says: for a manager in seconds, money and risk, for an engineer step by step."""
    from specbench.report.brief.doubts import doubts
    from specbench.report.explain.engineer import engineer_values
    from specbench.report.explain.manager import manager_values
    from specbench.report.explain.story import story

    found = story(stored, summary)
    values = manager_values(found) if level == "manager" else engineer_values(found)
    page = template(f"explain_run_{level}.md.j2")
    # Rendered once to see which doubts the text refers to, and once more with these.
    listed = in_order(doubts(summary, found.facts), page.render(values, doubts=[]))
    return with_words(level, summary.run, unmarked(page.render(values, doubts=listed)))
