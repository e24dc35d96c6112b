"""Two runs side by side, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.compare import (
    ComparedCategory,
    ComparedDraft,
    ComparedGamma,
    ComparedRun,
    Comparison,
)
from specbench.decision.interval import EQUIVALENT
from specbench.report.columns import pair
from specbench.report.dialect import said
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings

_Cells = list[tuple[str, str, tuple[str, ...], int]]


def comparison_tables(found: Comparison) -> list[RenderableType]:
    """What `compare` prints."""
    parts: list[RenderableType] = [Block(partial(_head, found))]
    for draft in found.drafts:
        parts.append(Block(partial(_draft, found, draft)))
    parts.append(Block(partial(_tail, found)))
    if found.warnings:
        parts.append(Block(partial(warnings, found.warnings)))
    return parts


def comparison_markdown(found: Comparison) -> str:
    """The same as a page."""
    lines = ["# Two runs side by side", ""]
    lines += [f"- {mark}: {_run_line(run, True)}" for mark, run in (("A", found.a), ("B", found.b))]
    lines += ["", text.escape(_over(found)), ""]
    for draft in found.drafts:
        lines += [f"## {text.code(draft.draft)}", "", f"**{text.escape(draft.reason)}**", ""]
        lines += _markdown_table(_gamma_cells(draft))
        if row := _shown(draft):
            lines += [f"By category, at gamma {row.gamma}:", "", *_markdown_table(_category_cells(row))]
    lines += [text.escape(line) for line in _last(found)]
    lines += [""] if found.warnings else []
    lines += [
        f"- *warning* {text.code(w.code)}: {text.escape(text.sentence(said(w)))} {text.escape(text.sentence(w.hint))}"
        for w in found.warnings
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head(found: Comparison, width: int, plain: bool) -> Iterator[RenderableType]:
    for mark, run in (("A", found.a), ("B", found.b)):
        yield note(f"{mark}  {_run_line(run, False)}", width, plain, style="")
    yield note(_over(found), width, plain)


def _run_line(run: ComparedRun, markdown: bool) -> str:
    load = f", requests {run.load}" if run.load else ""
    line = f"{run.target} on {run.engine}; {run.hardware}{load}"
    return f"{text.code(run.run)}: {text.escape(line)}" if markdown else f"{run.run}: {line}"


def _over(found: Comparison) -> str:
    return (
        f"Decoding, over the {text.count(found.prompts, 'prompt')} that both runs have. Where two numbers stand "
        "together the first is A's. B over A: the ratio of the two speedups, prompts paired."
    )


def _draft(found: Comparison, draft: ComparedDraft, width: int, plain: bool) -> Iterator[RenderableType]:
    line = Text("\n")
    line.append(f"{readable(draft.draft, plain)}: {draft.a_verdict} on A, {draft.b_verdict} on B", "bold")
    yield line
    yield note(draft.reason, width, plain, indent="  ", style="")
    yield from _table(_gamma_cells(draft), width, plain)
    if row := _shown(draft):
        yield Text(f"\nBy category, at gamma {row.gamma}")
        yield from _table(_category_cells(row), width, plain)


def _table(cells: _Cells, width: int, plain: bool) -> Iterator[RenderableType]:
    columns = [
        Column(name, header, tuple(readable(cell, plain) for cell in column), gives_way, left=name == "category")
        for name, header, column, gives_way in cells
        if set(column) != {text.UNKNOWN}
    ]
    kept = fit(columns, width)
    yield table(kept, plain)
    hidden = [column.name for column in columns if column.name not in {each.name for each in kept}]
    if hidden:
        yield note(f"Not shown at this width: {', '.join(hidden)}.", width, plain)


def _tail(found: Comparison, width: int, plain: bool) -> Iterator[RenderableType]:
    for line in _last(found):
        yield note(line, width, plain)


def _shown(draft: ComparedDraft) -> ComparedGamma | None:
    """The gamma whose categories are shown; None where there are none to tell apart."""
    row = next(row for row in draft.gammas if row.gamma == draft.gamma)
    return row if len(row.categories) > 1 else None


def _gamma_cells(draft: ComparedDraft) -> _Cells:
    """(name, header, cells, how soon it gives way)."""
    rows = draft.gammas
    return [
        ("gamma", "gamma", tuple(str(row.gamma) for row in rows), 0),
        *_speedups([(row.a.speedup, row.a.speedup_low, row.a.speedup_high) for row in rows],
                   [(row.b.speedup, row.b.speedup_low, row.b.speedup_high) for row in rows]),
        ("B over A", "B over A", tuple(_ratio(row) for row in rows), 0),
        ("tau", "tau", tuple(_two(row.a.tokens_per_round, row.b.tokens_per_round) for row in rows), 2),
        ("round's cost", "round's\ncost, steps", tuple(_two(row.a.round_steps, row.b.round_steps) for row in rows), 3),
        (
            "target alone",
            "target alone,\ntokens/s",
            tuple(pair([row.a.baseline_tokens_per_s, row.b.baseline_tokens_per_s]) for row in rows),
            4,
        ),
        (
            "with the draft",
            "with it,\ntokens/s",
            tuple(pair([row.a.tokens_per_s, row.b.tokens_per_s]) for row in rows),
            5,
        ),
    ]  # fmt: skip


def _category_cells(row: ComparedGamma) -> _Cells:
    rows = row.categories
    return [
        ("category", "category", tuple(category.category for category in rows), 0),
        *_speedups([(c.a_speedup, c.a_speedup_low, c.a_speedup_high) for c in rows],
                   [(c.b_speedup, c.b_speedup_low, c.b_speedup_high) for c in rows]),
        ("B over A", "B over A", tuple(_ratio(category) for category in rows), 0),
        ("prompts", "prompts", tuple(f"{category.prompts:,}" for category in rows), 2),
    ]  # fmt: skip


_Estimates = list[tuple[float, float | None, float | None]]


def _speedups(a: _Estimates, b: _Estimates) -> _Cells:
    return [
        ("A", "speedup\non A", tuple(text.estimate(*each) for each in a), 1),
        ("B", "speedup\non B", tuple(text.estimate(*each) for each in b), 1),
    ]


def _ratio(row: ComparedGamma | ComparedCategory) -> str:
    words = f"{row.ratio:.2f} {text.interval(row.ratio_low, row.ratio_high)}"
    return f"{words} {row.difference}" if row.difference == "same" else words


def _two(a: float | None, b: float | None) -> str:
    if a is None and b is None:
        return text.UNKNOWN
    return " / ".join(text.UNKNOWN if value is None else f"{value:.2f}" for value in (a, b))


def _last(found: Comparison) -> list[str]:
    """What else there is to say: what "same" means, arms of one run, and the rate that a gate looks at."""
    lines = []
    rows = [row for draft in found.drafts for row in draft.gammas]
    if any(row.difference == "same" for row in rows):
        lines.append(f'"same": the whole interval is within {text.percent(EQUIVALENT)} of 1.')
    open_ = [row for row in rows if row.difference == "not resolved" and row.ratio_low is not None]
    if open_:
        lines.append(
            "Where the interval merely holds 1, nothing is resolved: B may be faster or slower. More prompts tell."
        )
    for mark, arms in (("A", found.only_a), ("B", found.only_b)):
        if arms:
            lines.append(f"Only in {mark}: {text.join(arms)}.")
    if found.slower is not None:
        slower = found.slower
        low, high = slower.low, slower.high
        rate = text.estimate(1 - slower.by, None if high is None else 1 - high, None if low is None else 1 - low)
        lines.append(
            f"With {slower.draft} at gamma {slower.gamma}, A's choice, B decodes {rate} as many tokens per second as "
            "A. What the machine did otherwise between the two runs is in it."
        )
    return lines


def _markdown_table(cells: _Cells) -> list[str]:
    columns = [(header.replace("\n", " "), [text.escape(cell) for cell in column]) for _, header, column, _ in cells]
    header, rows = text.table(columns)
    lines = [header, (":--", *["--:"] * (len(header) - 1)), *rows]
    return [*(f"| {' | '.join(text.cell(cell) for cell in line)} |" for line in lines), ""]
