"""What one draft costs and would have to cost, in words and rows for the brief: break-evens, the predicted curve,
larger batches, memory and money."""

from __future__ import annotations

from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import BreakEven, DraftResult, GammaResult
from specbench.analysis.predict import EXPLAINED
from specbench.records import Policy
from specbench.report.templating import mark
from specbench.report.wording import best_row

Rows = tuple[tuple[str, ...], ...]

BATCH_HEADER = ("batch", "target alone, tokens/s", "best gamma", "speedup, decode", "tokens/s with it")

CURVE_NOTE = (
    f"All but the last column {mark('predicted', 'curve')}: rounds from the replay, costs timed before the first "
    "trial. The intervals are over prompts, and hold what the timing does not know of the costs. What the last token "
    "adds is the speedup over that of one gamma less."
)

_MISSING = {
    "acceptance": "the replayed tokens per round differ from the live ones",
    "drafting": "a draft step cost other than it did when timed alone",
    "verifying": "verifying cost other than it did when timed alone",
    "the rest": "the work outside the models cost other than it did in the warm-up",
}


@dataclass(frozen=True, slots=True)
class Economics:
    """One draft, ready for the template; what the run cannot say is empty."""

    break_even: str
    accuracy: tuple[str, ...]
    curve_header: tuple[str, ...]
    curve_rows: Rows
    batch_title: str
    batch_header: tuple[str, ...]
    batch_rows: Rows
    batch_note: str
    added: str


def economics(draft: DraftResult, policy: Policy, load: str | None = None) -> Economics:
    """Everything about cost that the measured rows alone do not say. `load` is that of a server."""
    row = best_row(draft)
    header, rows = _curve(draft)
    return Economics(
        break_even=_break_even(row, draft, policy) if row.break_even else "",
        accuracy=_accuracy(draft),
        curve_header=header,
        curve_rows=rows,
        batch_title="At larger batches" if load is None else "With more clients at once",
        batch_header=("batch" if load is None else "clients", *BATCH_HEADER[1:]),
        batch_rows=_batches(draft),
        batch_note=_batch_note(draft, served=load is not None) if len(draft.batches) > 1 else "",
        added=" ".join(part for part in (_memory(draft), _money(draft, load)) if part),
    )


def _break_even(row: GammaResult, draft: DraftResult, policy: Policy) -> str:
    even = row.break_even
    assert even is not None
    acceptance = (
        f"**Break-even at gamma {row.gamma}.** With this round, 1.00x takes {even.tokens_per_round:.2f} tokens per "
        f"round, that is {_alpha(even.alpha)}; {text.speedup(policy.min_speedup)} takes "
        f"{even.minimum_tokens_per_round:.2f}, that is {_alpha(even.minimum_alpha)}."
    )
    if draft.alpha is not None:
        acceptance += f" Measured: {row.tokens_per_round:.2f}, with {text.percent(draft.alpha)}."
    return f"{acceptance} {_draft_price(even, policy)}".rstrip()


def _alpha(share: float | None) -> str:
    return "more than a draft that is always right" if share is None else f"{text.percent(share)} accepted everywhere"


def _draft_price(even: BreakEven, policy: Policy) -> str:
    if even.measured_draft_steps is None:
        return ""
    most = [
        "not even a free draft" if steps is None else f"at most {steps:.2f} target steps"
        for steps in (even.draft_steps, even.minimum_draft_steps)
    ]
    return (
        f"With this acceptance, drafting one token may cost {most[0]} for 1.00x and {most[1]} for "
        f"{text.speedup(policy.min_speedup)}; it costs {even.measured_draft_steps:.2f} (measured)."
    )


def _accuracy(draft: DraftResult) -> tuple[str, ...]:
    """Prediction and closed form against the measurement, and the term that explains a miss."""
    rows = [row for row in draft.gammas if row.predicted_speedup is not None]
    if not rows:
        return ()
    closed = [row for row in rows if row.closed_form_speedup is not None]
    lines = [f"**Prediction against measurement.** {_errors(rows, [row.predicted_speedup for row in rows])}"]
    if closed:
        lines[0] += (
            " The published closed form (independent acceptance, verifying at the price of one step), from the same "
            f"acceptance and draft cost: {_errors(closed, [row.closed_form_speedup for row in closed])}"
        )
    off = [row for row in rows if row.missing_term is not None]
    lines += [
        f"At gamma {row.gamma} the prediction is off by more than {text.percent(EXPLAINED)}, most of all because "
        f"{_MISSING[row.missing_term or '']}."
        for row in off
    ]
    return tuple(lines)


def _errors(rows: list[GammaResult], values: list[float | None]) -> str:
    listed = [
        f"{text.speedup(value)} for {text.speedup(row.speedup)} at gamma {row.gamma} ({value / row.speedup - 1:+.0%})"
        for row, value in zip(rows, values, strict=True)
        if value is not None
    ]
    return f"{text.join(listed)}."


def _curve(draft: DraftResult) -> tuple[tuple[str, ...], Rows]:
    measured = {row.gamma: row for row in draft.gammas}
    rows = draft.predicted
    return text.table(
        [
            ("gamma", [str(row.gamma) for row in rows]),
            ("tau, replayed", [f"{row.tokens_per_round:.2f}" for row in rows]),
            ("speedup, decode", [text.estimate(row.speedup, row.speedup_low, row.speedup_high) for row in rows]),
            ("speedup, end to end", [text.speedup(row.speedup_e2e) for row in rows]),
            ("the last token adds", [f"{row.gain:+.1%}" for row in rows]),
            (
                "measured, decode",
                [text.speedup(measured[row.gamma].speedup if row.gamma in measured else None) for row in rows],
            ),
        ]
    )


def _batches(draft: DraftResult) -> Rows:
    if len(draft.batches) < 2:
        return ()
    return tuple(
        (
            str(row.batch),
            f"{row.baseline_tokens_per_s:.1f}",
            str(row.gamma),
            text.estimate(row.speedup, row.speedup_low, row.speedup_high),
            f"{row.tokens_per_s:.1f}",
        )
        for row in draft.batches
    )


def _batch_note(draft: DraftResult, *, served: bool) -> str:
    def at(batch: int) -> str:
        return text.count(batch, "client") if served else f"batch {batch}"

    if draft.stops_paying_at_batch is None:
        head = f"It pays up to {at(draft.batches[-1].batch)}, the largest probed"
        if draft.batches[-1].speedup < 1:
            head = "It pays at none of these"
    elif draft.stops_paying_at_batch == draft.batches[0].batch:
        head = "It pays at none of these"
    else:
        head = f"It stops paying at {at(draft.stops_paying_at_batch)}"
    costs = "rounds probed under each load" if served else "the models timed alone at each batch"
    return f"{head} {mark('predicted', 'batches')}: the replayed rounds of this run, {costs}."


def _memory(draft: DraftResult) -> str:
    found = draft.memory
    if found is None:
        return ""
    if found.total_bytes == 0:
        return "**Memory.** The draft adds none."
    cache = text.size(found.cache_bytes_per_token * found.context, "B")
    states = f", {text.size(found.state_bytes, 'B')} of states" if found.state_bytes else ""
    return (
        f"**Memory.** The draft adds {text.size(found.total_bytes, 'B')}: {text.size(found.weight_bytes, 'B')} of "
        f"weights{states}, and {cache} of KV cache for the longest text here ({found.context:,} tokens; "
        f"{text.size(found.cache_bytes_per_token, 'B')} a token, for each sequence of a batch)."
    )


def _money(draft: DraftResult, load: str | None) -> str:
    found = draft.money
    if found is None:
        return ""
    when = "One sequence at a time" if load is None else f"With requests {load}"
    return (
        f"**Money.** {when}, a million output tokens cost {found.baseline_per_million:,.2f} with the "
        f"target alone and {found.per_million:,.2f} with the draft, prompts included: "
        f"measured time, at the stated price of an hour {mark('assumed', 'price')}."
    )
