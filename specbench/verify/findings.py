"""What the doctor says: one finding for each check. Needs no model library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.records import Finding, Severity

SCHEMA = 2


def noticed(
    code: str, severity: Severity, said: str, hint: str | None = None, draft: str | None = None, **more: object
) -> Finding:
    """The result of one check: what was `said` in one line with numbers, `hint` where there is something to do. `draft`
    is None where the check is of the target, the set-up as a whole, or the machine."""
    of = {} if draft is None else {"draft": draft}
    return Finding(code, severity, {"said": said, **of, **more}, hint or "")


@dataclass(frozen=True, slots=True)
class Examination:
    """Everything the doctor found. `prompts` and `max_new_tokens` say how much text the checks rest on."""

    schema: int
    target: str
    drafts: tuple[str, ...]
    precision: str
    temperature: float
    prompts: int
    max_new_tokens: int
    broken: int
    findings: tuple[Finding, ...]


def any_broken(findings: Sequence[Finding], *codes: str) -> bool:
    """Whether one of these is broken; with `codes` only those count."""
    return any(f.severity == "broken" and (not codes or f.code in codes) for f in findings)
