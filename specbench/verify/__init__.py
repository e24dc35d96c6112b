"""A pre-flight: is the set-up sane? A broken one looks like a poor draft, and this room tells the two apart."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.records import Finding


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
