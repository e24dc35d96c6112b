"""What `check` and `doctor` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.checked import Agreement, Checked, CheckedDraft, CheckedGamma, Tally
from specbench.report.layout import Block, Column, fit, note, readable, table
from specbench.verify.findings import Examination, Finding, State

_WORDS: dict[Agreement, str] = {
    "same": "THE SAME",
    "rounding": "THE SAME BUT FOR ROUNDING",
    "differs": "DIFFERS",
    "undecided": "UNDECIDED",
}
_COLOUR: dict[Agreement, str] = {
    "same": "bold green",
    "rounding": "bold green",
    "differs": "bold red",
    "undecided": "bold yellow",
}

# What each reconciliation is, for people.
REASONS = {
    "first-token": "transformers drafts straight after the prompt, we after the first token: begun there",
    "limit": "near the token limit its look-up drafts more than can be kept: cut",
    "end-drafted": "its look-up leaves an end of sequence out of the draft: counted",
    "end-accepted": "it calls a drafted end of sequence that stands the bonus: counted as accepted",
}


def check_tables(found: Checked) -> list[RenderableType]:
    """What `check` prints."""
    parts: list[RenderableType] = [Block(partial(_head, found))]
    parts += [Block(partial(_draft, draft, found)) for draft in found.drafts]
    return parts


def _head(found: Checked, width: int, plain: bool) -> Iterator[RenderableType]:
    line = Text()
    line.append(_WORDS[found.agreement], _COLOUR[found.agreement])
    line.append(f"  the run's counts and those of {found.against}")
    yield line
    how = "greedy" if found.greedy else "sampling"
    yield note(f"{text.count(found.prompts, 'prompt')}, {found.precision}, {how}", width, plain)


def _draft(draft: CheckedDraft, found: Checked, width: int, plain: bool) -> Iterator[RenderableType]:
    yield Text(f"\n{readable(draft.draft, plain)}")
    if draft.not_compared is not None:
        yield note(f"not compared: {draft.not_compared}", width, plain, indent="  ", style="")
        return
    yield table(fit(_columns(draft.gammas), width), plain)
    for row in draft.gammas:
        yield note(f"gamma {row.gamma}: {row.reason}", width, plain, indent="  ", style="")
    for name, why in REASONS.items():
        touched = [(row.gamma, r.rounds) for row in draft.gammas for r in row.reconciliations if r.name == name]
        if any(rounds for _, rounds in touched):
            counts = text.join(f"{rounds} at gamma {gamma}" for gamma, rounds in touched)
            yield note(f"{name}: {why}. Rounds: {counts}.", width, plain, indent="  ")
    if found.precision != "float32" and any(row.agreement != "same" for row in draft.gammas) and found.greedy:
        yield note(f"{found.precision} rounds; a run in float32 is the sharp check.", width, plain, indent="  ")


def _columns(rows: tuple[CheckedGamma, ...]) -> list[Column]:
    sides = [(row, side) for row in rows for side in ("specbench", "transformers", "reconciled")]
    tallies = [{"specbench": row.ours, "transformers": row.theirs}.get(side, row.reconciled) for row, side in sides]
    first = [side == "specbench" for _, side in sides]

    def once(words: list[str]) -> tuple[str, ...]:
        return tuple(word if show else "" for word, show in zip(words, first, strict=True))

    def of(name: str) -> tuple[str, ...]:
        return tuple(f"{getattr(tally, name):,}" for tally in tallies)

    return [
        Column("gamma", "gamma", once([str(row.gamma) for row, _ in sides])),
        Column("texts", "texts\ncompared", once([_texts(row) for row, _ in sides])),
        Column("counted by", "counted by", tuple(side for _, side in sides), left=True),
        Column("rounds", "rounds", of("rounds")),
        Column("drafted", "drafted", of("drafted")),
        Column("accepted", "accepted", of("accepted")),
        Column(
            "tau",
            "tokens per\nround, tau",
            tuple(text.digits(t.tokens_per_round) for t in tallies),
            1,
            ("tau", _taus(tallies)),
        ),
        Column("r", "r", tuple(text.percent(t.acceptance_rate) for t in tallies), 2),
    ]


def _taus(tallies: list[Tally]) -> tuple[str, ...]:
    return tuple(text.digits(tally.tokens_per_round) for tally in tallies)


def _texts(row: CheckedGamma) -> str:
    return f"{row.texts - (row.other_texts or 0)} of {row.texts}"


_STATE_COLOUR: dict[State, str] = {"ok": "green", "note": "yellow", "broken": "bold red", "not checked": "dim"}
_ORDER: tuple[State, ...] = ("broken", "note", "not checked", "ok")
_INDENT = "    "


def doctor_tables(found: Examination) -> list[RenderableType]:
    """What `doctor` prints."""
    return [
        Block(partial(_examined, found)),
        Block(partial(_findings, found.findings)),
        Block(partial(_outcome, found)),
    ]


def _examined(found: Examination, width: int, plain: bool) -> Iterator[RenderableType]:
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
    line.stylize(_STATE_COLOUR[finding.state], 0, len(finding.state))
    yield line
    if finding.hint is not None and finding.state != "ok":
        yield note(text.sentence(finding.hint), width, plain, indent=_INDENT)


def _outcome(found: Examination, width: int, plain: bool) -> Iterator[RenderableType]:
    yield Text("")
    if found.broken:
        what = f"{text.count(found.broken, 'check')} found something broken."
        words = f"{what} Mend it first: a sweep would show it as a poor draft."
        yield note(words, width, plain, style="bold red")
    else:
        words = "Nothing is broken. Whether the draft is good enough is for `specbench sweep` to measure."
        yield note(words, width, plain, style="bold green")
