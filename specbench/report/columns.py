"""The tables of a run that take more than their rows: what each is given, and what users would see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.records import FEW_PROMPTS, Load, Policy
from specbench.report.dialect import PLAIN, Column, Plain, columns, sentence_of


def known(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if any(cell != text.UNKNOWN for cell in column.cells)]


def few(prompts: int, d: Plain) -> str:
    """` (few prompts)` behind a claim that rests on so many; empty where they are enough."""
    return type(d.mark("few-prompts"))(" ") + d.mark("few-prompts") if prompts < FEW_PROMPTS else ""


def _asked(policy: Policy) -> dict[str, Any]:
    bounds = f"[{text.exactly(policy.confidence)} interval]"
    decode = policy.metric == "decode"
    return {"policy": policy, "bounds": bounds, "decode": decode, "metric": "decode" if decode else "end to end"}


def gamma_columns(draft: DraftResult, policy: Policy, d: Plain = PLAIN) -> list[Column]:
    """One draft, gamma by gamma. Survival is for a terminal, which has no figures."""
    longest = max(len(row.survival) for row in draft.gammas)
    return columns(d, "gammas", draft.gammas, longest=longest, **_asked(policy))


def category_columns(
    draft: DraftResult, policy: Policy, d: Plain = PLAIN, *, short: bool = False, batch: int = 1
) -> list[Column]:
    """One draft by category, fastest first; `short` for the first page."""
    rows, marked = draft.by_speedup, not d.terminal
    every = marked and all(row.prompts < FEW_PROMPTS for row in rows)
    more = {"batch": batch, "all_few": every, "some_few": marked and not every, "predicted": marked and not short}
    asked = _asked(policy)
    return columns(d, "categories", rows, **asked | more | {"predicted": more["predicted"] and asked["decode"]})


def length_columns(draft: DraftResult, policy: Policy, d: Plain = PLAIN, batch: int = 1) -> list[Column]:
    """One draft by prompt length, where that was asked for; also lengths of which no prompt was measured."""
    return columns(d, "lengths", draft.lengths, batch=batch, **_asked(policy))


def candidate_columns(summary: Summary, d: Plain) -> list[Column]:
    """Every draft at its own best gamma, the chosen one first. Its estimate is that of the verdict."""
    chosen, choice = summary.recommended, summary.choice
    others = sorted((o for o in summary.drafts if o is not chosen), key=lambda draft: -draft.speedup)
    rows: list[dict[str, Any]] = [{"draft": other, "head": other, "gamma": other.best_gamma} for other in others]
    if chosen is not None:
        gamma = chosen.best_gamma if choice is None else choice.gamma
        rows.insert(0, {"draft": chosen, "head": summary.headline, "gamma": gamma})
    return columns(d, "candidates", rows, **_asked(summary.policy))


def curve_columns(draft: DraftResult, d: Plain) -> list[Column]:
    """What replay and costs predict, gamma by gamma, beside what was measured."""
    return columns(d, "predicted", draft.predicted, measured={row.gamma: row.speedup for row in draft.gammas})


def load_shown(summary: Summary) -> bool:
    """Whether there is more to say than the other tables do: several loads, or one that is not one request at a
    time."""
    return bool({row.load for row in summary.loads} - {Load().label})


def load_columns(summary: Summary, draft: DraftResult, d: Plain = PLAIN) -> list[Column]:
    """A server's loads, under which a draft is measured beside the target alone; none without any."""
    rows = [row for row in summary.loads if row.draft == draft.draft]
    return columns(d, "loads", rows, **_asked(summary.policy)) if rows else []


def glance_columns(summary: Summary, d: Plain) -> list[Column]:
    """What a request and the machine feel: the target alone beside the recommended draft at its best gamma."""
    draft = summary.recommended
    assert draft is not None
    row, answer, money, e = draft.best, draft.answer, draft.money, text.UNKNOWN
    unit = "a whole answer" if summary.batch_size == 1 else f"a batch of {summary.batch_size} answers"
    lines = [("decode tokens/s", f"{draft.baseline_tokens_per_s:.1f}", f"{row.tokens_per_s:.1f}")]
    if answer is not None:
        what = f"seconds for {unit}, prompt included (mean of {answer.tokens:.0f} tokens)"
        lines.append((what, f"{answer.baseline_s:.2f}", f"{answer.draft_s:.2f}"))
    share = text.percent(draft.slower_share)
    of = sentence_of("units", d, summary.batch_size)
    lines.append((f"{of} slower than {text.asked(summary.policy.slower_than)}", e, share))
    lines.append(("identical outputs", e, _texts(row, d)))
    if draft.memory is not None:
        lines.append(
            ("memory added", e, text.size(draft.memory.total_bytes, "B") or e if draft.memory.total_bytes else "none")
        )
    if money is not None:
        price = type(d.mark("price"))(f"{money.per_million:,.2f} ") + d.mark("price")
        lines.append(("a million output tokens", f"{money.baseline_per_million:,.2f}", price))
    lines.append(("stops paying at", e, _stops(draft, d, served=summary.facts.served)))
    kept = [line for line in lines if line[2] != e]
    names, off, on = (tuple(column) for column in zip(*kept, strict=True))
    first = Column("what", "measured", names, left=True)
    return [first, Column("off", "off", off), Column("on", "on", on)]


def _texts(row: GammaResult, d: Plain) -> str:
    """How many are the same, and what the others are."""
    if row.identical_prompts is None:
        return "not compared"
    same, found = text.out_of(row.identical_prompts, row.prompts), row.texts
    parts = [d.n(same)]
    if found is not None and found.ties:
        parts.append(d.n(f"{found.ties:,} differ by rounding") + " " + d.mark("near-ties"))
    if found is not None and found.wide:
        parts.append(d.strong(f"{found.wide:,} by more than rounding"))
    if found is not None and found.unknown:
        parts.append(d.n(f"{found.unknown:,} for reasons not recorded"))
    return type(parts[0])("; ").join(parts)


def _stops(draft: DraftResult, d: Plain, *, served: bool) -> str:
    if draft.stops_paying_at_concurrency is not None:
        return f"{text.count(draft.stops_paying_at_concurrency, 'request')} at a time"
    if draft.stops_paying_at_batch is not None:
        mark = d.mark("larger-batches")
        return type(mark)(sentence_of("at_batch", d, draft.stops_paying_at_batch, served)) + " " + mark
    return text.UNKNOWN
