"""A Summary as tables for a terminal: the verdict first, then the evidence by gamma and by category, then warnings.

What is shown depends on the terminal: columns give way until the table fits its width, and an ASCII-only terminal
gets ASCII. Nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.contract import Choice, DraftResult, Summary
from specbench.analysis.loads import best_by_concurrency
from specbench.records import Call, Policy
from specbench.report.columns import category_columns, gamma_columns, load_columns, load_shown
from specbench.report.dialect import PLAIN, Column, because, sentence_of
from specbench.report.layout import Block, fit, hidden, note, readable, table, warnings
from specbench.report.schedule import schedule_words

_COLOUR: dict[Call, str] = {"GO": "bold green", "NO-GO": "bold red", "UNCLEAR": "bold yellow"}

# By the name of the column that each explains.
_MEANINGS = {
    "acceptance_rate": "r: accepted / drafted tokens (falls as gamma grows).",
    "tokens_per_round": "tau: tokens per round, with the target's own.",
    "round_steps": "Round's cost: its time in steps of the target alone.",
}


def sweep_tables(summary: Summary) -> list[RenderableType]:
    """What `measure` and `sweep` print."""
    policy = summary.policy
    parts: list[RenderableType] = [Block(partial(_head, summary))]
    if len(summary.drafts) > 1 and summary.choice is not None:
        parts.append(Block(partial(_choice, summary.choice)))
    for draft in summary.drafts:
        parts.append(Block(partial(_verdict, draft, policy)))
        parts.append(Block(partial(_by_gamma, draft, summary)))
        if draft.by_speedup:
            parts.append(Block(partial(_by_category, draft, policy)))
    if load_shown(summary):
        parts.append(Block(partial(_loads, summary)))
    if summary.warnings:
        parts.append(Block(partial(warnings, summary.warnings)))
    return parts


def _say(name: str, *given: Any) -> str:
    return sentence_of(name, PLAIN, *given)


def _head(summary: Summary, width: int, plain: bool) -> Iterator[RenderableType]:
    yield note(f"{summary.target} on {summary.hardware}", width, plain, style="")
    yield note(summary.engine, width, plain)
    if summary.trials_spared:
        planned = summary.trials_run + summary.trials_spared
        yield note(f"Ran {summary.trials_run:,} of {planned:,} trials; the rest were ruled out.", width, plain)


def _verdict(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    found = text.estimate(draft.speedup, draft.speedup_low, draft.speedup_high)
    kind = "end to end" if policy.metric == "e2e" else "decode"
    line = Text("\n")
    line.append(draft.verdict, _COLOUR[draft.verdict])
    name = readable(draft.draft, plain)
    line.append(
        f"  {name}: {found} {kind}, best gamma {draft.best_gamma}, asked for {text.speedup(policy.min_speedup)}"
    )
    yield line
    for reason in draft.reasons:
        yield note(because(reason), width, plain, indent="  ", style="")


def _choice(choice: Choice, width: int, plain: bool) -> Iterator[RenderableType]:
    """Of several drafts the best, and how far the others are from it."""
    line = Text("\n")
    line.append(choice.verdict, _COLOUR[choice.verdict])
    found = text.estimate(choice.speedup, choice.speedup_low, choice.speedup_high)
    line.append(
        f"  best of {len(choice.rivals) + 1} drafts: {readable(choice.draft, plain)}, gamma {choice.gamma}, {found}"
    )
    yield line
    for rival in choice.rivals:
        ratio = text.estimate(rival.ratio, rival.ratio_low, rival.ratio_high)
        found = "" if rival.difference == "faster" else f", {rival.difference}"
        against = f"against {readable(rival.draft, plain)}, gamma {rival.gamma}: {ratio}{found}"
        yield note(against, width, plain, indent="  ", style="")


def _by_gamma(draft: DraftResult, summary: Summary, width: int, plain: bool) -> Iterator[RenderableType]:
    columns = gamma_columns(draft, summary.policy, ascii_only=plain)
    kept = fit(columns, width)
    yield table(kept, plain)
    prompts = max(row.prompts for row in draft.gammas)
    words = [f"Measured wall clock of decoding over {text.measured(prompts, summary.batch_size)}, {_how(summary)}."]
    known, shown = {column.name for column in columns}, {column.name for column in kept}
    words += [meaning for name, meaning in _MEANINGS.items() if name in (shown if name == "round_steps" else known)]
    if "survival" in shown:
        unit = " in tenths" if plain else ""
        words.append(f"Survival: share of rounds whose first 1, 2, .. drafts were accepted{unit}.")
    if summary.noise_floor is not None:
        words.append(f"Noise floor: {summary.noise_floor:.1%}.")
    if draft.stops_paying_at_batch is not None:
        kind = "batch" if summary.server is None else "concurrency"
        words.append(f"Predicted to stop paying at {kind} {draft.stops_paying_at_batch}.")
    if draft.head is not None:
        first, step, states = map(text.milliseconds, (draft.head.first_s, draft.head.step_s, draft.head.states_s))
        words.append(
            f"Timed alone: a round's first draft {first}, each later one {step}; keeping the states that the head "
            f"reads adds {states} to the target's pass."
        )
    yield note(" ".join([*words, *hidden(columns, kept)]), width, plain)
    for row in draft.stopped:
        yield note(_say("stopped", row, summary.batch_size), width, plain, style="")
    if draft.stopped:
        yield note(_say("stopped_note", draft.stopped), width, plain)


def _how(summary: Summary) -> str:
    if summary.server is not None:
        return f"{summary.server.load}, over HTTP from outside"
    return "one at a time" if summary.batch_size == 1 else "each batch at once"


def _by_category(draft: DraftResult, policy: Policy, width: int, plain: bool) -> Iterator[RenderableType]:
    columns = _readable(category_columns(draft, policy), plain)
    yield Text("")
    yield table(fit(columns, width), plain, verdicts=[_COLOUR[row.verdict] for row in draft.by_speedup])


def _loads(summary: Summary, width: int, plain: bool) -> Iterator[RenderableType]:
    """One table for each draft."""
    for draft in summary.drafts:
        columns = load_columns(summary, draft)
        if not columns:
            continue
        kept = fit(columns, width)
        yield Text(f"\n{readable(draft.draft, plain)} under load")
        yield table(kept, plain)
        paying = _say("stops_paying", summary, draft, best_by_concurrency(summary.loads, draft.draft, summary.policy))
        words = [
            _say("load_words", [row for row in summary.loads if row.draft == draft.draft]),
            paying,
            schedule_words(draft.schedule),
            *hidden(columns, kept),
        ]
        yield note(" ".join(filter(None, words)), width, plain)


def _readable(columns: Sequence[Column], plain: bool) -> list[Column]:
    """Names from users' files as this terminal can show them."""

    def shown(cells: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(readable(cell, plain) for cell in cells)

    return [
        replace(
            column,
            cells=shown(column.cells),
            short=None if column.short is None else (column.short[0], shown(column.short[1])),
        )
        for column in columns
    ]
