"""What speculative decoding is, for a manager or an engineer: Markdown that ends with the meanings of its words. What a
run says about it takes more libraries, which are imported for it alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specbench.report.explain import glossary

if TYPE_CHECKING:
    from specbench.analysis.contract import Summary

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
    page = files("specbench.report").joinpath(f"templates/explain_{level}.md").read_text(encoding="utf-8")
    return _with_words(level, None, page)


def _with_words(level: Level, run: str | None, body: str) -> Explanation:
    """A text with each term linked at its first use to the list that is put under it."""
    used = tuple(sorted(glossary.used_in(body), key=glossary.by_name))
    return Explanation(level, run, f"{glossary.linked(body).rstrip()}\n\n## Words\n\n{glossary.words(used)}\n", used)


def explain_run(summary: Summary, level: Level) -> Explanation:
    """What the run says: for a manager in seconds, money and risk, for an engineer step by step."""
    from specbench.report import brief
    from specbench.report.dialect import UNLINKED
    from specbench.report.page import markdown

    values = brief.values(summary) | {"name": UNLINKED.code(Path(summary.run).name)}
    return _with_words(level, summary.run, markdown(f"explain_run_{level}.j2", values, UNLINKED))
