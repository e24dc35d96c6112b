"""GO, NO-GO or UNCLEAR, by the user's policy.

GO: P(speedup >= minimum) >= confidence and no gate fails. NO-GO: P <= 1 - confidence, or a gate surely fails.
UNCLEAR: everything else, and always without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import prompts_for_verdict
from specbench.records import Interval, Policy, Reason, Verdict

# Beyond this many times the prompts there are, more prompts is no advice.
AFFORDABLE = 50


@dataclass(frozen=True, slots=True)
class Gates:
    """What can forbid a GO whatever the speed. `slower_share` of prompts ran below `policy.slower_than`, and at least
    `slower_low` would of all such prompts (None: the share is exact); `lossy` says why the output is not the target's,
    None if it is; `memory` why the draft does not fit; `idle` that it never drafted."""

    slower_share: float | None = None
    slower_low: float | None = None
    lossy: Reason | None = None
    memory: Reason | None = None
    idle: Reason | None = None


def judge(speedup: Interval, policy: Policy, gates: Gates, spread: Callable[[], float | None] | None = None) -> Verdict:
    """The verdict on one speedup, decode-only or end to end as `policy.metric` says. Where it is open, `spread` gives
    that of its prompts, as `decision.plan` has it; without it, what the interval's width tells of it."""
    for closed in (gates.lossy, gates.memory, gates.idle):
        if closed is not None:
            return Verdict("NO-GO", (closed,))
    probability = speedup.probability_at_least(policy.min_speedup)
    if probability is None or speedup.low is None or speedup.high is None:
        return Verdict("UNCLEAR", (Reason("too-few-prompts", {"prompts": speedup.n, "needed": MIN_PROMPTS}),))
    asked = {"minimum": policy.min_speedup, "confidence": policy.confidence}
    odds = Reason("odds", {**asked, "probability": probability})
    slow = _slower(gates.slower_share, policy)
    if probability <= 1 - policy.confidence:
        return Verdict("NO-GO", (odds,) if slow is None else (odds, slow), probability)
    if slow is not None:
        if gates.slower_low is None or gates.slower_low > policy.max_slower_share:
            return Verdict("NO-GO", (slow, odds), probability)
        chance = replace(slow, values={**slow.values, "may_be_chance": True})
        return Verdict("UNCLEAR", (chance, odds), probability)
    if probability >= policy.confidence:
        return Verdict("GO", (odds,), probability)
    return Verdict("UNCLEAR", (odds, _more(speedup, policy, spread() if spread else None)), probability)


def least_share(share: float, prompts: float, confidence: float) -> float:
    """What the share of all such prompts is at least, with `confidence` (one side), where `share` of so many had it:
    Clopper and Pearson 1934, Biometrika 26, 404-413. `prompts` may be a fraction, as an effective number is."""
    from scipy.special import betaincinv

    had = share * prompts
    return float(betaincinv(had, prompts - had + 1, 1 - confidence)) if had > 0 else 0.0


def prompts_to_settle(speedup: Interval, policy: Policy, spread: float | None = None) -> int | None:
    """About how many prompts in all would decide it in four of five cases, if the speedup stays where it is, as
    `specbench plan` counts them; None if it lies on the minimum, where no number would."""
    if speedup.low is None or speedup.high is None:
        return MIN_PROMPTS
    from scipy.special import stdtrit

    if spread is None:
        reach = math.log(speedup.high / speedup.low) / 2
        spread = reach * math.sqrt(speedup.n) / float(stdtrit(speedup.n - 1, (1 + speedup.confidence) / 2))
    needed = prompts_for_verdict(spread, speedup.value, policy.min_speedup, policy.confidence)
    return None if needed is None else max(speedup.n + 1, needed)


def _slower(share: float | None, policy: Policy) -> Reason | None:
    if share is None or share <= policy.max_slower_share:
        return None
    values = {"share": share, "slower_than": policy.slower_than, "allowed": policy.max_slower_share}
    return Reason("slower-prompts", {**values, "may_be_chance": False})


def _more(speedup: Interval, policy: Policy, spread: float | None) -> Reason:
    needed = prompts_to_settle(speedup, policy, spread)
    if needed is None or needed > AFFORDABLE * speedup.n:
        return Reason("on-the-minimum", {"minimum": policy.min_speedup})
    return Reason("more-prompts", {"more": needed - speedup.n, "needed": needed})
