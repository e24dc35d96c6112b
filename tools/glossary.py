"""docs/glossary.md, from the words in specbench/report/explain/glossary.yaml."""

from __future__ import annotations

from specbench.report.explain import glossary
from specbench.report.explain.glossary import Term, by_name

_HEAD = """\
# Glossary

Words that papers and engines have other names for. `specbench explain --term tau` prints any word of the output and of
these pages, with its formula, unit and neighbours; [measuring.md](measuring.md) defines what is counted.
"""


def page() -> str:
    """Each term that has another name elsewhere, by name."""
    told = sorted((term for term in glossary.terms().values() if term.elsewhere), key=by_name)
    return "\n".join([_HEAD, *map(_section, told)])


def _section(term: Term) -> str:
    """One paragraph below a heading; `explain --term` has formulas, units and neighbours as well."""
    facts = (
        term.plain,
        f"Also {', '.join(term.also)}." if term.also else "",
        f"Elsewhere {_ended(term.elsewhere)}" if term.elsewhere else "",
        f"Not {_ended(term.confused)}" if term.confused else "",
    )
    return f"## {term.name}\n\n{' '.join(filter(None, facts))}\n"


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
