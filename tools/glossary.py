"""docs/glossary.md, from the words in specbench/report/explain/glossary.yaml."""

from __future__ import annotations

from specbench.report.explain import glossary
from specbench.report.explain.glossary import Term, by_name

_HEAD = """\
# Glossary

The words of specbench's output and of these pages, and what engines call them. `specbench explain --term tau` prints one.
Generated from `specbench/report/explain/glossary.yaml`.

In formulas D, A and E are tokens drafted, accepted and emitted, s is the number of rounds, R of those that ended in a
rejection, s_j survival to position j, p the target's distribution of the next token and q the draft's. t_dec is the time
of the target alone for one token, t_draft of drafting, t_verify(n) of the target's pass over n tokens; h is what a round
takes outside both models. S is the speedup.
"""


def page() -> str:
    """The page: every term, by name."""
    return "\n".join([_HEAD, *(_section(term) for term in sorted(glossary.terms().values(), key=by_name))])


def _section(term: Term) -> str:
    """One paragraph below a heading."""
    unit = f"Unit: {term.unit}." if term.unit else ""
    facts = (
        term.plain,
        f"`{term.formula}`." if term.formula else "",
        unit,
        f"Also {', '.join(term.also)}." if term.also else "",
        f"Elsewhere {_ended(term.elsewhere)}" if term.elsewhere else "",
        f"Not {_ended(term.confused)}" if term.confused else "",
    )
    return f"## {term.name}\n\n{' '.join(filter(None, facts))}\n"


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
