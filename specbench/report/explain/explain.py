"""What speculative decoding is, for a manager or an engineer: Markdown that ends with the meanings of its words. What a
run says about it is in explained.py, which needs more libraries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from specbench.report.explain import glossary
from specbench.report.templating import template

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
