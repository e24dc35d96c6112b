"""A ProbeSummary as tables for a terminal: per model a step by batch and context, then the cost of reading several
tokens at once, draft phases, prefill, and how far a step is from what memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from rich.console import RenderableType
from rich.text import Text

from specbench import text
from specbench.analysis.probed import Phase, ProbedModel, ProbeSummary, Round, Step, Width
from specbench.report.layout import Block, Column, fit, note, readable, table, warnings


def probe_tables(found: ProbeSummary) -> list[RenderableType]:
    """What `probe` prints."""
    parts: list[RenderableType] = [Block(partial(_head, found))]
    for model in found.models:
        parts.append(Block(partial(_model, model, found)))
    for draft in dict.fromkeys(row.draft for row in found.rounds):
        parts.append(Block(partial(_rounds, [row for row in found.rounds if row.draft == draft])))
    if found.warnings:
        parts.append(Block(partial(warnings, found.warnings)))
    return parts


def _head(found: ProbeSummary, width: int, plain: bool) -> Iterator[RenderableType]:
    what = "Rounds of a server" if found.rounds else "The models alone"
    yield note(f"{what} on {found.hardware}", width, plain, style="")
    threads = None if found.threads is None else text.count(found.threads, "thread")
    yield note(", ".join(filter(None, (found.engine, found.precision, threads))), width, plain)
    memory = found.bandwidth
    if memory is None:
        return
    rates = f"{memory.bytes_per_s / 1e9:.1f} GB/s [{memory.low / 1e9:.1f}, {memory.high / 1e9:.1f}]"
    yield note(f"Memory: {rates}, {memory.what}", width, plain)


def _model(model: ProbedModel, found: ProbeSummary, width: int, plain: bool) -> Iterator[RenderableType]:
    sizes = text.join(
        word for word in (text.size(model.parameters, "parameters"), text.size(model.weight_bytes, "B")) if word
    )
    yield Text(f"\n{readable(model.role, plain)} {readable(model.model, plain)}: {sizes}", "bold")
    if not model.steps:
        yield note("Not timed: see the warnings.", width, plain)
        return
    yield table(fit(_step_columns(model), width), plain)
    yield note(_roofline(model), width, plain)
    if model.widths:
        yield Text("")
        yield from _widths(model, width, plain)
    if model.phases:
        yield Text("")
        yield table(fit(_phase_columns(model.phases), width), plain)
        yield note("A draft phase as the loop drives it, sampling included, against gamma single steps.", width, plain)
    if model.prefills:
        yield Text("")
        yield table(fit(_prefill_columns(model), width), plain)


def _rounds(rows: list[Round], width: int, plain: bool) -> Iterator[RenderableType]:
    """A row for each load and gamma; in target steps the round is the tokens that it takes to break even."""
    yield Text(f"\nRounds of {readable(rows[0].draft, plain)}", "bold")
    columns = [
        Column("clients", "clients\nat once", tuple(str(row.concurrency) for row in rows)),
        Column("gamma", "gamma", tuple(str(row.gamma) for row in rows)),
        Column(
            "steps",
            "a round, in target steps\n[95% interval]",
            tuple(f"{row.steps:.2f} {text.interval(row.steps_low, row.steps_high)}" for row in rows),
        ),
        Column("round", "a round, ms", tuple(f"{1000 * row.round_s:.1f}" for row in rows), 1),
        Column("step", "a step alone, ms", tuple(f"{1000 * row.step_s:.1f}" for row in rows), 2),
    ]
    yield table(fit(columns, width), plain)
    yield note(
        "So many tokens per round break even. Ratios are of the same prompts within each pass; how much of a round is "
        "kept is not in its time.",
        width,
        plain,
    )


def _step_columns(model: ProbedModel) -> list[Column]:
    steps = model.steps
    columns = [
        Column("batch", "batch", tuple(str(s.batch) for s in steps)),
        Column("context", "context", tuple(f"{s.context:,}" for s in steps)),
        Column(
            "step", "one step, ms\n[95% interval]", tuple(_ms(s.step_s, s.step_low_s, s.step_high_s) for s in steps)
        ),
        Column("tokens/s", "tokens/s\nalone", tuple(f"{s.tokens_per_s:,.1f}" for s in steps)),
    ]
    if any(s.cost is not None for s in steps):
        columns.append(Column("c", "c = t_draft / t_dec\n[interval]", tuple(map(_cost, steps))))
    return columns


def _cost(step: Step) -> str:
    if step.cost is None or step.cost_low is None or step.cost_high is None:
        return text.UNKNOWN
    return f"{step.cost:.3f} [{step.cost_low:.3f}, {step.cost_high:.3f}]"


def _roofline(model: ProbedModel) -> str:
    """The least time of a step at batch 1, and how far the shortest context is from it."""
    read = text.size(model.step_bytes, "B")
    least = f"A step reads {read} of weights: at least {text.milliseconds(model.least_step_s)} at this memory's speed"
    first = model.steps[0]
    if first.batch != 1:
        return f"{least}."
    factor = first.step_s / model.least_step_s
    if factor < 1:
        return f"{least}; at batch 1 it takes {factor:.2f} of that, so part of the weights stays in the caches."
    return f"{least}; at batch 1 it takes {factor:.2f} times that."


def _widths(model: ProbedModel, width: int, plain: bool) -> Iterator[RenderableType]:
    """v(n), a column for each batch."""
    rows = sorted({(w.context, w.tokens) for w in model.widths})
    by = {(w.batch, w.context, w.tokens): w for w in model.widths}
    columns = [
        Column("context", "context", tuple(f"{context:,}" for context, _ in rows)),
        Column(
            "tokens", "tokens\nat once, n", tuple(str(n) for _, n in rows), 0, ("n", tuple(str(n) for _, n in rows))
        ),
    ]
    for rank, batch in enumerate(sorted({w.batch for w in model.widths})):
        cells = [by.get((batch, *row)) for row in rows]
        short = tuple(text.UNKNOWN if w is None else f"{w.ratio:.2f}" for w in cells)
        header = f"batch {batch}"
        columns.append(Column(header, f"v(n), {header}\n[interval]", tuple(map(_v, cells)), rank, (header, short)))
    kept = fit(columns, width)
    yield table(kept, plain)
    words = "v(n): time to read n tokens at once over the time of one."
    if "[" not in kept[-1].header:
        words += " Intervals do not fit this width; --json has them."
    if len(kept) < len(columns):
        words += f" Not shown at this width: {text.join(c.name for c in columns if c.name not in _names(kept))}."
    yield note(words, width, plain)


def _names(columns: list[Column]) -> set[str]:
    return {column.name for column in columns}


def _v(width: Width | None) -> str:
    return text.UNKNOWN if width is None else f"{width.ratio:.2f} {text.interval(width.ratio_low, width.ratio_high)}"


def _phase_columns(phases: tuple[Phase, ...]) -> list[Column]:
    times = tuple(_ms(p.phase_s, p.phase_low_s, p.phase_high_s) for p in phases)
    return [
        Column("context", "context", tuple(f"{p.context:,}" for p in phases)),
        Column("gamma", "gamma", tuple(str(p.gamma) for p in phases)),
        Column("phase", "draft phase, ms\n[95% interval]", times),
        Column("ratio", "over gamma\nsingle steps", tuple(f"{p.ratio:.2f}" for p in phases)),
    ]


def _prefill_columns(model: ProbedModel) -> list[Column]:
    rows = model.prefills
    times = tuple(_ms(p.prefill_s, p.prefill_low_s, p.prefill_high_s) for p in rows)
    return [
        Column("batch", "batch", tuple(str(p.batch) for p in rows)),
        Column("tokens", "prompt\ntokens", tuple(f"{p.tokens:,}" for p in rows)),
        Column("prefill", "prefill, ms\n[95% interval]", times),
        Column("tokens/s", "prefill\ntokens/s", tuple(f"{p.tokens_per_s:,.0f}" for p in rows)),
    ]


def _ms(value_s: float, low_s: float, high_s: float) -> str:
    digits = 2 if value_s < 0.01 else 1
    shown = [f"{1000 * seconds:,.{digits}f}" for seconds in (value_s, low_s, high_s)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
