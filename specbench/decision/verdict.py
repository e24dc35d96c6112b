"""GO, NO-GO or UNCLEAR, by the user's policy.

GO: P(speedup >= minimum) >= confidence and no gate fails. NO-GO: P <= 1 - confidence, or a gate surely fails.
UNCLEAR: everything else, and always without an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import prompts_for_verdict
from specbench.records import Interval, Policy, Verdict


@dataclass(frozen=True, slots=True)
class Gates:
    """What can forbid a GO whatever the speed. `slower_share` of prompts ran below `policy.slower_than`, and at least
    `slower_low` would of all such prompts (None: the share is exact); `lossy` says why the output is not the target's,
    None if it is; `memory` why the draft does not fit; `idle` that it never drafted."""

    slower_share: float | None = None
    slower_low: float | None = None
    lossy: str | None = None
    memory: str | None = None
    idle: str | None = None


def judge(speedup: Interval, policy: Policy, gates: Gates) -> Verdict:
    """The verdict on one speedup, decode-only or end to end as `policy.metric` says."""
    for closed in (gates.lossy, gates.memory, gates.idle):
        if closed is not None:
            return Verdict("NO-GO", (closed,))
    probability = speedup.probability_at_least(policy.min_speedup)
    if probability is None or speedup.low is None or speedup.high is None:
        few = f"{speedup.n} prompt{'' if speedup.n == 1 else 's'}: an interval takes at least {MIN_PROMPTS}"
        return Verdict("UNCLEAR", (few,))
    odds = f"P(speedup >= {policy.min_speedup:.2f}x) = {_percent(probability)}"
    slow = _slower(gates.slower_share, policy)
    if probability <= 1 - policy.confidence:
        return Verdict("NO-GO", tuple(filter(None, (odds, slow))), probability)
    if slow is not None:
        if gates.slower_low is None or gates.slower_low > policy.max_slower_share:
            return Verdict("NO-GO", (slow, odds), probability)
        return Verdict("UNCLEAR", (f"{slow}, which over so few prompts may be chance", odds), probability)
    if probability >= policy.confidence:
        return Verdict("GO", (odds,), probability)
    return Verdict("UNCLEAR", (odds, _more(speedup, policy)), probability)


def least_share(share: float, prompts: float, confidence: float) -> float:
    """What the share of all such prompts is at least, with `confidence` (one side), where `share` of so many had it:
    Clopper and Pearson 1934, Biometrika 26, 404-413. `prompts` may be a fraction, as an effective number is."""
    from scipy.special import betaincinv

    had = share * prompts
    return float(betaincinv(had, prompts - had + 1, 1 - confidence)) if had > 0 else 0.0


def prompts_to_settle(speedup: Interval, policy: Policy) -> int | None:
    """About how many prompts in all would decide it in four of five cases, if the speedup stays where it is, as
    `specbench plan` counts them; None if it lies on the minimum, where no number would."""
    if speedup.low is None or speedup.high is None:
        return MIN_PROMPTS
    from scipy.special import stdtrit

    # The spread of prompts that this interval's width tells of.
    reach = math.log(speedup.high / speedup.low) / 2
    spread = reach * math.sqrt(speedup.n) / float(stdtrit(speedup.n - 1, (1 + speedup.confidence) / 2))
    needed = prompts_for_verdict(spread, speedup.value, policy.min_speedup, policy.confidence)
    return None if needed is None else max(speedup.n + 1, needed)


def _slower(share: float | None, policy: Policy) -> str | None:
    if share is None or share <= policy.max_slower_share:
        return None
    return f"{share:.0%} of prompts run below {policy.slower_than:.2f}x (at most {policy.max_slower_share:.0%} allowed)"


def _more(speedup: Interval, policy: Policy) -> str:
    needed = prompts_to_settle(speedup, policy)
    if needed is None or needed > 50 * speedup.n:
        return "the speedup lies at the minimum asked for: no affordable number of prompts would tell them apart"
    more = needed - speedup.n
    more = round(more, -max(0, len(str(more)) - 2))  # no more digits than such an estimate has
    return f"about {more:,} more prompts like these would settle it, if the speedup stays where it is"


def _percent(share: float) -> str:
    """A probability from a few thousand draws is never 0% or 100%."""
    if share < 0.01:
        return "under 1%"
    return "over 99%" if share > 0.99 else f"{share:.0%}"
