"""An Examination for a terminal: the broken first, each with its evidence and cure, then one line for each other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.report.layout import Block, note, readable
from specbench.verify.findings import Examination, Finding, State

_COLOUR: dict[State, str] = {"ok": "green", "note": "yellow", "broken": "bold red", "not checked": "dim"}
_ORDER: tuple[State, ...] = ("broken", "note", "not checked", "ok")
_INDENT = "    "


def doctor_tables(found: Examination) -> list[RenderableType]:
    """What `doctor` prints."""
    return [Block(partial(_head, found)), Block(partial(_findings, found.findings)), Block(partial(_verdict, found))]


def _head(found: Examination, width: int, plain: bool) -> Iterator[RenderableType]:
    yield note(f"{found.target} with {text.join(found.drafts)}", width, plain, style="")
    sampling = "greedy" if found.temperature == 0 else f"temperature {found.temperature:g}"
    texts = f"{text.count(found.prompts, 'prompt')} of up to {found.max_new_tokens} new tokens"
    yield note(f"{texts}, {found.precision}, {sampling}", width, plain)


def _findings(findings: Sequence[Finding], width: int, plain: bool) -> Iterator[RenderableType]:
    several = len({finding.draft for finding in findings if finding.draft is not None}) > 1
    for state in _ORDER:
        chosen = [finding for finding in findings if finding.state == state]
        if chosen:
            yield Text("")
        for finding in chosen:
            yield from _finding(finding, several, width, plain)


def _finding(finding: Finding, several: bool, width: int, plain: bool) -> Iterator[RenderableType]:
    draft = f" {finding.draft}" if several and finding.draft is not None else ""
    label = readable(f"{finding.state}: {finding.code}{draft}", plain)
    words = textwrap.wrap(
        f"{label}: {readable(finding.evidence, plain)}", width, subsequent_indent=_INDENT, break_on_hyphens=False
    )
    line = Text("\n".join(words))
    line.stylize(_COLOUR[finding.state], 0, len(finding.state))
    yield line
    if finding.cure is not None and finding.state != "ok":
        yield note(text.sentence(finding.cure), width, plain, indent=_INDENT)


def _verdict(found: Examination, width: int, plain: bool) -> Iterator[RenderableType]:
    yield Text("")
    if found.broken:
        what = f"{text.count(found.broken, 'check')} found something broken."
        words = f"{what} Mend it first: a sweep would show it as a poor draft."
        yield note(words, width, plain, style="bold red")
    else:
        words = "Nothing is broken. Whether the draft is good enough is for `specbench sweep` to measure."
        yield note(words, width, plain, style="bold green")
