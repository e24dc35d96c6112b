"""Reasons to call a measurement off, fixed in advance: each with its threshold, and whether the pilot meets it. What is
said of them is in words.yaml."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specbench.acceptance.lossless import NEAR_TIE, NEAR_TIE_NATS, near_tie_limit
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts
from specbench.analysis.pilot import Pilot, read_pilots
from specbench.analysis.plan import Plan, half_width_of
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS
from specbench.decision.verdict import least_share
from specbench.records import Policy
from specbench.store import StoredRun

# "perhaps": the pilot is beyond the threshold, but its prompts are too few to be sure of that. The worst comes first.
State = Literal["met", "perhaps", "not met", "not known"]
STATES: tuple[State, ...] = ("met", "perhaps", "not met", "not known")


@dataclass(frozen=True, slots=True)
class Evidence:
    """A pilot under the plan's policy. `pilots` has every draft of which two prompts or more met every arm, each as the
    plan sees its own."""

    summary: Summary
    pilots: dict[str, Pilot]

    @property
    def facts(self) -> Facts:
        return self.summary.facts


@dataclass(frozen=True, slots=True)
class Found:
    """What one draft's part of the pilot, or the pilot as a whole (`draft` None), says of one reason. `what` is one of
    the reason's own entries, over `values`."""

    state: State
    what: str
    values: Mapping[str, Any] = field(default_factory=dict)
    draft: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """One reason with the `values` of its threshold, and what is found; `by` what it is met: the pilot, its file or the
    plan."""

    code: str
    values: Mapping[str, Any]
    found: tuple[Found, ...]
    by: str = "the pilot"

    @property
    def state(self) -> State:
        """The worst that is found."""
        return next((state for state in STATES if any(each.state == state for each in self.found)), "not known")


# Warnings of a run that it did not measure what it was meant to.
BROKEN = (
    "nothing-accepted",
    "replay-disagrees",
    "not-speculating",
    "baseline-speculates",
    "gamma-not-honoured",
    "counters-disagree",
)


def read_evidence(stored: StoredRun, summary: Summary, plan: Plan) -> Evidence:
    pilots = read_pilots(stored, summary.policy, plan.gammas)
    return Evidence(summary, {one.draft: pilots[one.draft] for one in summary.drafts if one.draft in pilots})


def any_time(plan: Plan, pilot: Evidence | None) -> list[Stop]:
    """Reasons that say nothing about the speedup, so that they may be looked at whenever."""
    return [
        _stop("broken", {"codes": BROKEN}, pilot, _broken),
        _stop("other-text", _near_tie(pilot), pilot, _texts),
        _noise(plan, pilot),
        _stop("biased", {"reach": plan.half_width}, pilot, lambda pilot: [_biased(plan, pilot)]),
    ]


def too_few(plan: Plan, prompts: int | None, pilot: Evidence | None) -> Stop:
    """That there are not as many requests as the plan collects; None where no number is enough."""
    if prompts is None:
        return Stop("too-few", {"needed": None, "most": MAX_PROMPTS}, (Found("met", "none"),), "this plan")
    each = 1 if pilot is None else pilot.facts.batch_size
    needed = prompts * each
    there = None if pilot is None else pilot.facts.workload.available
    if there is None:
        return _stop("too-few", {"needed": needed}, pilot, lambda _: [Found("not known", "unrecorded")])
    short = there < needed
    values = {"there": there, "reach": half_width_of(plan, there // each), "short": short}
    found = Found("met" if short else "not met", "file", values)
    return Stop("too-few", {"needed": needed}, (found,), "the pilot's own file" if short else "the pilot")


def before_the_sweep(plan: Plan, policy: Policy, pilot: Evidence | None) -> list[Stop]:
    """Reasons that look at the speedup: only the pilot's prompts may meet them, which are not used again."""
    minimum = plan.min_speedup
    slower = {"most": policy.max_slower_share, "slower_than": policy.slower_than}
    return [
        _stop("slower", slower, pilot, lambda pilot: slower_shares(pilot, policy, plan.confidence)),
        _stop("free-draft", {"minimum": minimum}, pilot, lambda p: [_ceiling(each, plan) for each in p.summary.drafts]),
        _stop(
            "already-no",
            {"minimum": minimum, "least": 1 - plan.confidence},
            pilot,
            lambda p: [_chance(each, policy) for each in p.summary.drafts],
        ),
        _undecidable(plan),
    ]


def _stop(
    code: str, values: Mapping[str, Any], pilot: Evidence | None, look: Callable[[Evidence], Iterable[Found]]
) -> Stop:
    return Stop(code, values, (Found("not known", "no-pilot"),) if pilot is None else tuple(look(pilot)))


def _broken(pilot: Evidence) -> list[Found]:
    said = list(dict.fromkeys(warning.code for warning in pilot.summary.warnings if warning.code in BROKEN))
    return [Found("met", "raised", {"raised": said}) if said else Found("not met", "none")]


def _near_tie(pilot: Evidence | None) -> dict[str, Any]:
    """How far apart the two best tokens may be for rounding to flip them."""
    if pilot is None:
        return {"limits": NEAR_TIE}
    if pilot.facts.served:
        return {"nats": NEAR_TIE_NATS}
    return {"limit": near_tie_limit(pilot.facts.precision), "precision": pilot.facts.precision}


def _texts(pilot: Evidence) -> list[Found]:
    """Greedy texts that leave the target's own, and how many of them rounding does not explain."""
    greedy = pilot.facts.sampling.greedy
    return [_text(draft) for draft in pilot.summary.drafts] if greedy else [Found("not known", "sampled")]


def _text(draft: DraftResult) -> Found:
    found, rows = draft.texts, [row for row in draft.gammas if row.identical_prompts is not None]
    if found is None or not rows:
        return Found("not known", "uncompared", draft=draft.draft)
    values = {"differing": found.differing, "texts": sum(row.prompts for row in rows), "wide": found.wide}
    return Found("met" if found.wide else "not met", "differing", values, draft.draft)


def _noise(plan: Plan, pilot: Evidence | None) -> Stop:
    effect = abs(plan.min_speedup - 1) or plan.half_width

    def look(pilot: Evidence) -> list[Found]:
        floor = pilot.summary.noise_floor
        if floor is None:
            return [Found("not known", "unmeasured", {"enough": MIN_PROMPTS})]
        return [Found("met" if floor >= effect else "not met", "floor", {"floor": floor})]

    return _stop("noise", {"effect": effect, "gain": plan.min_speedup != 1}, pilot, look)


def _biased(plan: Plan, pilot: Evidence) -> Found:
    own = pilot.pilots.get(plan.draft or "")
    if own is None or own.aa_log_ratio is None or own.whole.n < MIN_PROMPTS:
        return Found("not known", "unmeasured", {"enough": MIN_PROMPTS})
    met = any(warning.code == "noise-floor" for warning in plan.warnings)
    return Found("met" if met else "not met", "differs", {"by": abs(math.expm1(own.aa_log_ratio))})


def slower_shares(pilot: Evidence, policy: Policy, confidence: float) -> list[Found]:
    """The share of prompts below `slower_than`, as the plan counts it: met where even the lower end of its exact
    interval (Clopper and Pearson 1934) is too much."""
    found = []
    for draft, own in pilot.pilots.items():
        share, n = own.whole.slower_share, own.whole.n
        least = least_share(share, n, confidence)
        over, surely = share > policy.max_slower_share, least > policy.max_slower_share
        state: State = "not met" if not over else "met" if surely else "perhaps"
        values = {"share": share, "prompts": n, "least": least if state == "perhaps" else None}
        found.append(Found(state, "share", values, draft))
    return found


def _ceiling(draft: DraftResult, plan: Plan) -> Found:
    """The speedup that drafting for nothing would give, at the draft length where it is largest."""
    known = [(value, row) for row in draft.gammas if (value := free_draft(row, draft)) is not None]
    if not known:
        return Found("not known", "untold", draft=draft.draft)
    value, row = max(known, key=lambda pair: pair[0])
    if plan.metric == "e2e":
        value = max(value, 1.0)  # reading the prompt takes as long as it did
    reached = value >= plan.min_speedup
    untried = [] if reached else sorted(set(plan.gammas) - {each.gamma for _, each in known})
    # With other prompts the ceiling moves as much as the speedup itself.
    sure = row.speedup_high is not None and value * row.speedup_high / row.speedup < plan.min_speedup
    state: State = "not met" if reached else "met" if sure and not untried else "perhaps"
    return Found(state, "ceiling", {"speedup": value, "gamma": row.gamma, "untried": untried}, draft.draft)


def free_draft(row: GammaResult, draft: DraftResult) -> float | None:
    """The decode speedup if drafting took no time and as much were accepted; where a round's parts are not known, if a
    round took no longer than a step of the target. None without tokens per round."""
    tau, times = row.tokens_per_round, row.round_time
    if tau is None or times is None:
        return tau
    return tau / draft.baseline_tokens_per_s / (times.verify_s + times.other_s)


def _chance(draft: DraftResult, policy: Policy) -> Found:
    """The chance of the minimum, as the pilot's own brief gives it."""
    if draft.probability is None:
        return Found("not known", "untold", {"enough": MIN_PROMPTS}, draft.draft)
    state: State = "met" if draft.probability <= 1 - policy.confidence else "not met"
    return Found(state, "chance", {"probability": draft.probability}, draft.draft)


def _undecidable(plan: Plan) -> Stop:
    """Also without a pilot, where a speedup is stated."""
    found = Found("not known", "no-speedup")
    if plan.verdict is not None:
        n = plan.verdict.need.prompts
        found = Found("met" if n is None else "not met", "at", {"speedup": plan.verdict.speedup, "prompts": n})
    return Stop("undecidable", {"most": MAX_PROMPTS}, (found,), "this plan")
