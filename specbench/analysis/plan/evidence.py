"""What a pilot says of the reasons to call a measurement off, draft by draft."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts
from specbench.analysis.plan.contract import Plan
from specbench.analysis.plan.pilot import Pilot, read_pilot
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.verdict import least_share
from specbench.errors import StoreError
from specbench.records import Policy
from specbench.store import StoredRun

# "perhaps": the pilot is beyond the threshold, but its prompts are too few to be sure of that.
State = Literal["met", "perhaps", "not met", "not known"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A pilot under the plan's policy. `pilots` has every draft of which two prompts or more met every arm, each as the
    plan sees its own."""

    stored: StoredRun
    summary: Summary
    pilots: dict[str, Pilot]

    @property
    def facts(self) -> Facts:
        return self.summary.facts


@dataclass(frozen=True, slots=True)
class Found:
    """What one draft's part of the pilot, or the pilot as a whole (`draft` None), says of one reason."""

    state: State
    what: str
    draft: str | None = None


def read_evidence(stored: StoredRun, summary: Summary, plan: Plan) -> Evidence:
    """The pilot of `plan`, draft by draft."""
    pilots = {}
    for draft in summary.drafts:
        alone = replace(stored.run, config=replace(stored.run.config, draft=(draft.draft,)))
        try:
            pilots[draft.draft] = read_pilot(replace(stored, run=alone), summary.policy, plan.gammas)
        except StoreError:
            continue  # too few of its prompts were measured
    return Evidence(stored, summary, pilots)


def other_texts(pilot: Evidence) -> list[Found]:
    """Greedy texts that leave the target's own, and how many of them rounding does not explain."""
    return [_texts(draft) for draft in pilot.summary.drafts]


def _texts(draft: DraftResult) -> Found:
    found, rows = draft.texts, [row for row in draft.gammas if row.identical_prompts is not None]
    if found is None or not rows:
        return Found("not known", "no text was compared", draft.draft)
    told = f"{found.differing:,} of {text.count(sum(row.prompts for row in rows), 'text')} differ"
    if found.wide:
        return Found("met", f"{told}, {found.wide:,} of them by more than that", draft.draft)
    return Found("not met", told + (", none by more than that" if found.differing else ""), draft.draft)


def slower_shares(pilot: Evidence, policy: Policy, confidence: float) -> list[Found]:
    """The share of prompts below `slower_than`, as the plan counts it."""
    return [_share(draft, own, policy, confidence) for draft, own in pilot.pilots.items()]


def _share(draft: str, own: Pilot, policy: Policy, confidence: float) -> Found:
    """Met where even the lower end of the share's exact interval (Clopper and Pearson 1934) is too much."""
    share, n = own.whole.slower_share, own.whole.n
    told = f"{text.percent(share)} of {text.count(n, 'prompt')}"
    if share <= policy.max_slower_share:
        return Found("not met", told, draft)
    least = least_share(share, n, confidence)
    if least > policy.max_slower_share:
        return Found("met", told, draft)
    return Found("perhaps", f"{told}, which may be as few as {text.percent(least)} of all such prompts", draft)


def ceilings(pilot: Evidence, plan: Plan) -> list[Found]:
    """The speedup that drafting for nothing would give, at the draft length where it is largest."""
    return [_ceiling(draft, plan) for draft in pilot.summary.drafts]


def _ceiling(draft: DraftResult, plan: Plan) -> Found:
    known = [(value, row) for row in draft.gammas if (value := free_draft(row, draft)) is not None]
    if not known:
        return Found("not known", "tokens per round were not told", draft.draft)
    value, row = max(known, key=lambda pair: pair[0])
    if plan.metric == "e2e":
        value = max(value, 1.0)  # reading the prompt takes as long as it did
    told = f"at most {text.speedup(value)}, at gamma {row.gamma} (predicted)"
    if value >= plan.min_speedup:
        return Found("not met", told, draft.draft)
    untried = sorted(set(plan.gammas) - {each.gamma for _, each in known})
    if untried:
        told += f"; gamma {text.join(map(str, untried))} was not measured"
    # With other prompts the ceiling moves as much as the speedup itself.
    sure = row.speedup_high is not None and value * row.speedup_high / row.speedup < plan.min_speedup
    return Found("met" if sure and not untried else "perhaps", told, draft.draft)


def free_draft(row: GammaResult, draft: DraftResult) -> float | None:
    """The decode speedup if drafting took no time and as much were accepted; where a round's parts are not known, if a
    round took no longer than a step of the target. None without tokens per round."""
    tau, times = row.tokens_per_round, row.round_time
    if tau is None or times is None:
        return tau
    return tau / draft.baseline_tokens_per_s / (times.verify_s + times.other_s)


def chances(pilot: Evidence, policy: Policy) -> list[Found]:
    """The chance of the minimum, as the pilot's own brief gives it."""
    return [_chance(draft, policy) for draft in pilot.summary.drafts]


def _chance(draft: DraftResult, policy: Policy) -> Found:
    if draft.probability is None:
        return Found("not known", f"a chance takes {MIN_PROMPTS} prompts", draft.draft)
    state: State = "met" if draft.probability <= 1 - policy.confidence else "not met"
    return Found(state, f"the chance is {text.chance(draft.probability)}", draft.draft)
