"""What to distrust: every claim about a run that is predicted, assumed, extrapolated or rests on few prompts, and
measured ones that are easily taken for more than they are. Each is a Finding whose code its marks in the text lead to.
"""

from __future__ import annotations

from collections.abc import Iterator

from specbench.analysis.cautions import note
from specbench.analysis.contract import CategoryResult, DraftResult, Summary
from specbench.analysis.facts import MANY_CUT
from specbench.analysis.steps import cost, next_steps
from specbench.records import FEW_PROMPTS, Finding, Policy

# The weightiest first: what may turn the verdict itself round, then what bounds it, then what stands beside it.
WEIGHT = (
    "few-prompts",
    "no-noise-floor",
    "unsteady-categories",
    "cut-answers",
    "sample",
    "elsewhere",
    "traffic-mix",
    "average",
    "rejection-rule",
    "near-ties",
    "close-calls",
    "larger-batches",
    "price",
)

# Fewer slow prompts than this are not worth a line, and an interval that ends nearer than this is a close call.
_MENTIONED = 0.05
_CLOSE = 0.05


def doubts(summary: Summary, *, engines: bool = False, split: bool = False) -> tuple[Finding, ...]:
    """Of a run, the weightiest first. `engines` and `split`: a page gives settings for engines that were not measured,
    and for servers that share the traffic."""
    if not summary.drafts:
        return ()
    found = [*_claims(summary, engines, split), *_limits(summary), *_of_drafts(summary)]
    found += _server(summary) if summary.server is not None else _not_recorded(summary)
    place = {code: number for number, code in enumerate(WEIGHT)}
    return tuple(sorted(found, key=lambda each: place.get(each.code, len(place))))


def _claims(summary: Summary, engines: bool, split: bool) -> Iterator[Finding]:
    """What marks in the text lead to, each where the text has such a mark."""
    facts, policy, drafts = summary.facts, summary.policy, summary.drafts
    rows = [row for draft in drafts for row in draft.gammas]
    chosen = [] if summary.choice is None else [summary.choice]
    reasons = [*(each for draft in drafts for each in draft.reasons), *(each for one in chosen for each in one.reasons)]
    steps = {step.code for step in next_steps(summary)}
    there = {
        "elsewhere": True,
        "traffic-mix": bool(policy.mix),
        "what-if": any(cost(draft, policy) or _whole_rounds(draft) for draft in drafts),
        "one-more-token": "larger-gamma" in steps,
        "replay-and-costs": any(row.predicted_speedup for row in rows) or any(draft.predicted for draft in drafts),
        "by-category": policy.metric == "decode" and any(c.predicted_speedup for d in drafts for c in d.by_speedup),
        "larger-batches": any(len(d.batches) > 1 or d.stops_paying_at_batch is not None for d in drafts),
        "prompts-to-settle": any(reason.code == "more-prompts" for reason in reasons),
        "price": any(draft.money for draft in drafts),
        "rejection-rule": not facts.sampling.greedy,
        "near-ties": any(draft.texts and draft.texts.differing > draft.texts.unknown for draft in drafts),
        "other-engines": engines,
        "split-servers": split,
        "no-noise-floor": summary.noise_floor is None,
    }
    yield from (note(code, served=facts.served) for code, listed in there.items() if listed)
    few = {c.category: c.prompts for d in drafts for c in d.by_speedup if c.prompts < FEW_PROMPTS}
    lengths = {(each.low, each.high) for d in drafts for each in d.lengths if 0 < each.prompts < FEW_PROMPTS}
    whole = min([*(draft.best.prompts for draft in drafts), *(head.prompts for head in chosen)])
    if few or lengths or whole < FEW_PROMPTS:
        fewer, batch = whole if whole < FEW_PROMPTS else None, summary.batch_size
        yield note("few-prompts", whole=fewer, enough=FEW_PROMPTS, batch=batch, categories=few, lengths=len(lengths))


def _whole_rounds(draft: DraftResult) -> bool:
    """Whether a draft's round is known without its parts, as on a server."""
    row = draft.best
    return row.round_time is None and row.round_steps is not None and row.drafted != 0


def _limits(summary: Summary) -> Iterator[Finding]:
    work, facts = summary.facts.workload, summary.facts
    if work.used is not None and work.available is not None and work.used < work.available:
        yield note("sample", used=work.used, available=work.available)
    if facts.cut_share is not None and facts.cut_share > MANY_CUT and facts.max_new_tokens:
        yield note("cut-answers", share=facts.cut_share, limit=facts.max_new_tokens)
    ratios = {c.category: c.baseline_ratio for d in summary.drafts for c in d.by_speedup if c.baseline_ratio}
    if ratios:
        yield note("unsteady-categories", ratios=ratios)


def _not_recorded(summary: Summary) -> Iterator[Finding]:
    """What a sweep in process usually tells, and this one does not."""
    batches = summary.batch_size == 1 and all(len(draft.batches) < 2 for draft in summary.drafts)
    memory = any(draft.memory is None for draft in summary.drafts)
    if batches or memory:
        yield note("not-recorded", batches=batches, memory=memory)


def _server(summary: Summary) -> Iterator[Finding]:
    """What cannot be seen from outside."""
    rows = [row for draft in summary.drafts for row in draft.gammas]
    if any(row.tokens_per_round is None for row in rows):
        yield note("rounds-not-told")
    elif any(not row.survival for row in rows):
        yield note("survival-not-told")
    share = min((row.counted_share for row in rows if row.drafted is not None), default=1.0)
    if share < 1:
        yield note("counts-in-part", share=share)
    yield note("parts-not-told")
    if not any(draft.predicted for draft in summary.drafts):
        yield note("nothing-predicted")


def _of_drafts(summary: Summary) -> Iterator[Finding]:
    """Draft by draft: verdicts that were close, and prompts that the average hides."""
    policy = summary.policy
    close = {
        draft.draft: {
            each.category: (each.speedup_low, each.speedup_high)
            for each in draft.by_speedup
            if each.verdict != "UNCLEAR" and _close(each, policy)
        }
        for draft in summary.drafts
    }
    if any(close.values()):
        close = {draft: found for draft, found in close.items() if found}
        yield note("close-calls", drafts=close, minimum=policy.min_speedup)
    shares = {draft.draft: draft.slower_share or 0.0 for draft in summary.drafts}
    shares = {draft: share for draft, share in shares.items() if share >= _MENTIONED}
    if shares:
        yield note("average", drafts=shares, slower_than=policy.slower_than, batch=summary.batch_size)


def _close(category: CategoryResult, policy: Policy) -> bool:
    """The end that faces the minimum is near it, or beyond: an interval has two sides, a verdict one."""
    go = category.verdict == "GO"
    end = category.speedup_low if go else category.speedup_high
    return end is not None and (end - policy.min_speedup if go else policy.min_speedup - end) < _CLOSE
