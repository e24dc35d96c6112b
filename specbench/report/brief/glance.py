"""The brief at a glance: what a request and the machine feel, the target alone beside the recommended draft."""

from __future__ import annotations

from collections.abc import Sequence

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts, differing, parted
from specbench.records import Trial
from specbench.report.marks import mark
from specbench.report.wording import best_row, recommended

Rows = tuple[tuple[str, ...], ...]


def glance(summary: Summary, facts: Facts, trials: Sequence[Trial]) -> tuple[tuple[str, ...], Rows]:
    """Header and rows for the draft that the verdict on the whole run is about, at its best gamma; none without one."""
    draft = recommended(summary)
    if draft is None:
        return (), ()
    row, mix = best_row(draft), facts.policy.mix
    trials = [trial for trial in trials if not mix or (trial.category or "all") in mix]
    name = f"with {text.code(draft.draft)}, gamma {row.gamma}"
    rows = [
        ("decoding, tokens/s", f"{draft.baseline_tokens_per_s:.1f}", f"{row.tokens_per_s:.1f}"),
        _answer(facts, trials, draft.draft, row.gamma),
        ("price of a million tokens", *_money(draft)),
        (f"chance of {text.speedup(facts.policy.min_speedup)} or more", text.UNKNOWN, _chance(draft)),
        (f"requests below {text.speedup(facts.policy.slower_than)}", text.UNKNOWN, _slower(row, draft, facts)),
        ("texts that are the target's own", text.UNKNOWN, _texts(row, draft, facts, trials)),
        ("memory added", text.UNKNOWN, _memory(draft)),
        ("stops paying at", text.UNKNOWN, _stops(draft)),
    ]
    return ("measured", "target alone", name), tuple(row for row in rows if row[2] != text.UNKNOWN)


def _answer(facts: Facts, trials: Sequence[Trial], draft: str, gamma: int) -> tuple[str, str, str]:
    """Seconds for a whole answer, the prompt included: means over the prompts that both arms have."""
    alone = {(t.prompt_id, t.repeat): t for t in trials if t.arm.kind == "baseline"}
    own = [t for t in trials if (t.arm.draft, t.arm.gamma) == (draft, gamma) and (t.prompt_id, t.repeat) in alone]
    what = "a whole answer" if facts.batch_size == 1 else f"a batch of {facts.batch_size} answers"
    if not own:
        return what, text.UNKNOWN, text.UNKNOWN
    both = [alone[t.prompt_id, t.repeat] for t in own], own
    tokens = sum(t.output_tokens / t.sequences for t in both[0]) / len(own)
    before_s, after_s = (sum(t.times.total_s for t in side) / len(own) for side in both)
    return f"{what}, prompt included (mean of {tokens:.0f} tokens)", f"{before_s:.2f} s", f"{after_s:.2f} s"


def _money(draft: DraftResult) -> tuple[str, str]:
    found = draft.money
    if found is None:
        return text.UNKNOWN, text.UNKNOWN
    return f"{found.baseline_per_million:,.2f}", f"{found.per_million:,.2f} {mark('assumed', 'price')}"


def _slower(row: GammaResult, draft: DraftResult, facts: Facts) -> str:
    """At this gamma, as the column says; the verdict's own share is over the gammas that hold-out halves choose."""
    return text.percent(draft.slower_share if facts.policy.metric == "e2e" else row.slower_share)


def _chance(draft: DraftResult) -> str:
    return text.UNKNOWN if draft.probability is None else text.chance(draft.probability)


def _texts(row: GammaResult, draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> str:
    """How many are the same, and what the others are."""
    if row.identical_prompts is None:
        return "not compared"
    found = differing([t for t in trials if t.arm.gamma == row.gamma], draft.draft)
    same = text.out_of(row.identical_prompts, row.prompts)
    if not found:
        return same
    by = parted(found, facts.precision)
    parts = [
        f"{by.ties:,} differ by rounding {mark('assumed', 'near-tie')}" if by.ties else "",
        f"**{len(by.wide):,} by more than rounding**" if by.wide else "",
        f"{by.unknown:,} for reasons not recorded" if by.unknown else "",
    ]
    return "; ".join([same, *filter(None, parts)])


def _memory(draft: DraftResult) -> str:
    found = draft.memory
    if found is None:
        return text.UNKNOWN
    return text.size(found.total_bytes, "B") or text.UNKNOWN if found.total_bytes else "none"


def _stops(draft: DraftResult) -> str:
    if draft.stops_paying_at_concurrency is not None:
        return f"{text.count(draft.stops_paying_at_concurrency, 'request')} at a time (measured)"
    if draft.stops_paying_at_batch is not None:
        return f"batch {draft.stops_paying_at_batch} {mark('predicted', 'batches')}"
    return text.UNKNOWN
