"""docs/glossary.md, from the words in specbench/report/explain/glossary.yaml."""

from __future__ import annotations

from specbench.report.explain import glossary
from specbench.report.explain.glossary import Term, by_name

_HEAD = """\
# Glossary

What papers and engines call our words. [measuring.md](measuring.md) defines what is counted; `specbench explain --term
tau` says what any word of the output and of these pages means, with its formula, unit and neighbours.

"""


def page() -> str:
    """Each term that has another name elsewhere, by name."""
    told = sorted((term for term in glossary.terms().values() if term.elsewhere), key=by_name)
    return _HEAD + "".join(map(_line, told))


def _line(term: Term) -> str:
    """Its names here and elsewhere, and what it is not."""
    names = f"**{term.name}**" + "".join(f", {name}" for name in term.also)
    not_that = f" Not {_ended(term.confused)}" if term.confused else ""
    return f"- {names}: {_ended(term.elsewhere or '')}{not_that}\n"


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
