"""A Plan as tables for a terminal: what is wanted and what it takes, other true speedups, categories, assumptions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.plan import Need, Plan, Truth
from specbench.report.dialect import part
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings


def plan_tables(plan: Plan) -> list[RenderableType]:
    """What `plan` prints."""
    parts: list[RenderableType] = [Block(partial(_head, plan)), Block(partial(_goals, plan))]
    parts.append(Block(partial(_truths, plan)))
    if plan.categories:
        parts.append(Block(partial(_categories, plan)))
    parts.append(Block(partial(_assumed, plan)))
    if plan.warnings:
        parts.append(Block(partial(warnings, plan.warnings)))
    return parts


def _head(plan: Plan, width: int, plain: bool) -> Iterator[RenderableType]:
    arms = 2 + plan.drafts * len(plan.gammas)
    gammas = text.join(map(str, plan.gammas))
    size = (
        f"To measure: the target alone twice and {text.count(plan.drafts, 'draft')} at gamma {gammas}: {arms} arms, "
        f"{text.count(plan.repeats, 'repeat')} of every prompt."
    )
    spread = f"{plan.spread.value:.3f}"
    if plan.spread.low is not None and plan.spread.high is not None:
        spread += f" [{plan.spread.low:.3f}, {plan.spread.high:.3f}]"
    if plan.pilot_prompts is None:
        source = f"From assumptions alone, no pilot. Spread between prompts {spread}."
    else:
        found = "" if plan.speedup is None else text.speedup(plan.speedup)
        if plan.speedup_low is not None:
            found += f" {text.interval(plan.speedup_low, plan.speedup_high)}"
        source = (
            f"Pilot: {plan.run}, {text.count(plan.pilot_prompts, 'prompt')}, {plan.draft}. Speedup {found} "
            f"{'end to end' if plan.metric == 'e2e' else 'decode'}; spread between prompts {spread}"
        )
        source += "." if plan.noise_spread is None else f" (target alone against itself: {plan.noise_spread:.3f})."
    for words in (source, size):
        yield note(words, width, plain, style="")


def _goals(plan: Plan, width: int, plain: bool) -> Iterator[RenderableType]:
    wanted = f"+-{100 * plan.half_width:g}%"
    rows = [(f"interval within {wanted}", plan.width)]
    if plan.verdict is not None:
        call = plan.verdict.verdict or "verdict"
        rows.append((f"{call}, if it is truly {text.speedup(plan.verdict.speedup)}", plan.verdict.need))
    if plan.every_category is not None:
        rows.append((f"each category within {wanted}", plan.every_category))
    columns = [Column("for", "for", tuple(name for name, _ in rows), left=True)]
    yield Text("")
    yield table(fit([*columns, *_need_columns([need for _, need in rows])], width), plain)
    share = text.percent(plan.chance)
    words = (
        f"At {text.percent(plan.confidence)} confidence. A run of that size gets what is asked for with a chance of "
        f"{share}"
    )
    if plan.spread.low is not None:
        level = text.percent(plan.confidence)
        words += f", if the spread is the pilot's; in brackets, at the ends of the spread's {level} interval"
    yield note(f"{words}.", width, plain)


def _truths(plan: Plan, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = plan.truths
    columns = [
        Column("truth", "true speedup", tuple(text.speedup(row.speedup) for row in rows), left=True),
        Column("call", "verdict", tuple(row.verdict or "none" for row in rows), left=True),
        *_need_columns([row.need for row in rows]),
    ]
    yield Text(f"\nFor a verdict at a minimum of {text.speedup(plan.min_speedup)}")
    yield table(fit(columns, width), plain)


def _categories(plan: Plan, width: int, plain: bool) -> Iterator[RenderableType]:
    rows = plan.categories
    needs = [row.width for row in rows]
    columns = [
        Column("category", "category", tuple(readable(row.category, plain) for row in rows), left=True),
        Column("pilot", "prompts\nin pilot", tuple(f"{row.pilot_prompts:,}" for row in rows), 2),
        Column(
            "spread", "spread", tuple(f"{row.spread.value:.3f}{'*' if row.shared_spread else ' '}" for row in rows), 1
        ),
        Column("prompts", f"prompts for\n+-{100 * plan.half_width:g}%", tuple(map(prompts_cell, needs))),
        Column("minutes", "minutes", tuple(map(minutes_cell, needs)), 3),
        Column("settled", "prompts for\na verdict", tuple(_verdict(row.verdict) for row in rows)),
    ]
    yield Text("\nEach category on its own")
    yield table(fit(columns, width), plain)
    if any(row.shared_spread for row in rows):
        yield note("* too few prompts in the pilot: the spread within all categories together", width, plain)


def _verdict(truth: Truth | None) -> str:
    if truth is None:
        return text.UNKNOWN
    return f"{prompts_cell(truth.need)} at {text.speedup(truth.speedup)}"


def _need_columns(needs: list[Need]) -> list[Column]:
    columns = [
        Column("prompts", "prompts", tuple(map(prompts_cell, needs))),
        Column("minutes", "minutes", tuple(map(minutes_cell, needs))),
    ]
    return [column for column in columns if set(column.cells) != {text.UNKNOWN}]


def prompts_cell(need: Need) -> str:
    if need.prompts is None:
        return "no number"
    ends = "" if need.prompts_low is None else f" {_range(need.prompts_low, need.prompts_high)}"
    return f"{need.prompts:,}{ends}"


def minutes_cell(need: Need) -> str:
    if need.minutes is None:
        return text.UNKNOWN
    low = "" if need.minutes_low is None else f" {_range(need.minutes_low, need.minutes_high)}"
    return f"{_whole(need.minutes)}{low}"


def _range(low: float, high: float | None) -> str:
    return f"[{_whole(low)}, {'more' if high is None else _whole(high)}]"


def _whole(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) and value < 10 else f"{value:,.0f}"


def _assumed(plan: Plan, width: int, plain: bool) -> Iterator[RenderableType]:
    yield Text("\nAssumed, not measured:")
    for assumed in plan.assumed:
        lines = textwrap.wrap(
            readable(part(assumed, "claim"), plain), width, initial_indent="  - ", subsequent_indent="    "
        )
        yield Text("\n".join(lines))
