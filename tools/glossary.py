"""docs/glossary.md, from the words in specbench/report/explain/glossary.yaml."""

from __future__ import annotations

from specbench.report.explain import glossary
from specbench.report.explain.glossary import by_name, term_markdown

_HEAD = """\
# Glossary

The words that specbench uses, in its output and in these pages. `specbench explain --term tau` prints one of them.
Generated from `specbench/report/explain/glossary.yaml`; `docs/measuring.md` has the reasons.

In the formulas D, A and E are tokens drafted, accepted and emitted, s is the number of rounds, R the number of rounds
that ended in a rejection, s_j survival to position j, p the target's distribution of the next token and q the draft's.
Times are written t: t_dec of the target alone for one token, t_draft of drafting, t_verify(n) of the target's pass over
n tokens; h is what a round takes outside both models. S is the speedup.
"""


def page() -> str:
    """The page: every term, by name."""
    return "\n".join([_HEAD, *(term_markdown(term, 2) for term in sorted(glossary.terms().values(), key=by_name))])
