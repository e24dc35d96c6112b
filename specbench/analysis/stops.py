"""Reasons to call a measurement off, fixed in advance: each with its threshold, and whether the pilot meets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from specbench import text
from specbench.acceptance.lossless import NEAR_TIE, NEAR_TIE_NATS, near_tie_limit
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts
from specbench.analysis.pilot import Pilot, read_pilot
from specbench.analysis.plan import Plan, half_width_of
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS
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
    pilots = {}
    for draft in summary.drafts:
        alone = replace(stored.run, config=replace(stored.run.config, draft=(draft.draft,)))
        try:
            pilots[draft.draft] = read_pilot(replace(stored, run=alone), summary.policy, plan.gammas)
        except StoreError:
            continue  # too few of its prompts were measured
    return Evidence(stored, summary, pilots)


def _texts(draft: DraftResult) -> Found:
    """Greedy texts that leave the target's own, and how many of them rounding does not explain."""
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


def _ceiling(draft: DraftResult, plan: Plan) -> Found:
    """The speedup that drafting for nothing would give, at the draft length where it is largest."""
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


def _chance(draft: DraftResult, policy: Policy) -> Found:
    """The chance of the minimum, as the pilot's own brief gives it."""
    if draft.probability is None:
        return Found("not known", f"a chance takes {MIN_PROMPTS} prompts", draft.draft)
    state: State = "met" if draft.probability <= 1 - policy.confidence else "not met"
    return Found(state, f"the chance is {text.chance(draft.probability)}", draft.draft)


# Warnings of a run that it did not measure what it was meant to.
BROKEN = (
    "nothing-accepted",
    "replay-disagrees",
    "not-speculating",
    "baseline-speculates",
    "gamma-not-honoured",
    "counters-disagree",
)

TOO_FEW = "There are not enough requests"

_SAYS: dict[State, str] = {
    "met": "**Already met by the pilot:** {}.",
    "perhaps": "**The pilot leans that way, but too few prompts say so:** {}.",
    "not met": "Not met by the pilot: {}.",
    "not known": "Not known yet: {}.",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """One reason: its name, the `rule` with its threshold, how the pilot stands to it (the worst of its drafts), and
    the same in `words`."""

    name: str
    rule: str
    state: State
    words: str


def any_time(plan: Plan, pilot: Evidence | None) -> list[Stop]:
    """Reasons that say nothing about the speedup, so that they may be looked at whenever."""
    return [_broken(pilot), _other_text(pilot), _noise(plan, pilot), _biased(plan, pilot)]


def too_few(plan: Plan, prompts: int | None, pilot: Evidence | None) -> Stop:
    """That there are not as many requests as the plan collects; None where no number is enough."""
    if prompts is None:
        rule = f"No number of prompts up to {MAX_PROMPTS:,} gives the interval or the verdict that is asked for."
        return Stop(TOO_FEW, rule, "met", "**Already met by this plan.** Ask for another minimum or a wider interval.")
    each = 1 if pilot is None else pilot.facts.batch_size
    rule = (
        f"The window of section 4 holds fewer than {prompts * each:,} different ones. Widen the window, or agree on a "
        "wider interval and plan again. The same request twice is not two."
    )
    there = None if pilot is None else pilot.facts.workload.available
    if there is None:
        return _stop(TOO_FEW, rule, pilot, [Found("not known", "how many its file has was not recorded")])
    width = half_width_of(plan, there // each)
    reach = "" if width is None else f", enough for an interval of {exactly(width)} to either side (planned)"
    if there >= prompts * each:
        return _stop(TOO_FEW, rule, pilot, [Found("not met", f"its file alone has {there:,}{reach}")])
    words = f"**Already met by the pilot's own file:** it has {there:,}{reach}. Collect more, as section 4 says."
    return Stop(TOO_FEW, rule, "met", words)


def before_the_sweep(plan: Plan, policy: Policy, pilot: Evidence | None) -> list[Stop]:
    """Reasons that look at the speedup: only the pilot's prompts may meet them, which are not used again."""
    minimum, most = speedup(plan.min_speedup), exactly(policy.max_slower_share)
    drafts = () if pilot is None else pilot.summary.drafts
    return [
        _stop(
            "Too many prompts get slower",
            f"More than {most} of prompts run below {speedup(policy.slower_than)}. If that stays so the verdict is "
            "NO-GO however fast the rest is. See first whether they share a category: without it this is a new "
            "question, with a plan of its own.",
            pilot,
            [] if pilot is None else slower_shares(pilot, policy, plan.confidence),
        ),
        _stop(
            "Not even a free draft would do",
            f"With the pilot's tokens per round a draft that took no time at all would stay below {minimum} at every "
            "draft length. Then only another draft helps, one that agrees with the target more.",
            pilot,
            [_ceiling(draft, plan) for draft in drafts],
        ),
        _stop(
            "The pilot already says no",
            f"By the rule of section 1 its prompts alone give the chance of {minimum} or more as "
            f"{exactly(1 - plan.confidence)} or less.",
            pilot,
            [_chance(draft, policy) for draft in drafts],
        ),
        _undecidable(plan),
    ]


def _undecidable(plan: Plan) -> Stop:
    """Also without a pilot, where a speedup is stated."""
    rule = (
        f"At the speedup that was measured or assumed a verdict takes more than {MAX_PROMPTS:,} prompts, because it "
        "lies on the minimum. Decide by something else than speed, or ask for another minimum."
    )
    name = "No number of prompts decides it"
    if plan.verdict is None:
        return Stop(name, rule, "not known", "Not known yet: there is no speedup.")
    n, at = plan.verdict.need.prompts, text.speedup(plan.verdict.speedup)
    if n is None:
        return Stop(name, rule, "met", f"**Already met by this plan:** the speedup is {at}.")
    return Stop(name, rule, "not met", f"Not met by this plan: {n:,} at {at} (planned).")


def _stop(name: str, rule: str, pilot: Evidence | None, found: Sequence[Found]) -> Stop:
    """The reason with what every draft says, or the pilot as a whole."""
    if pilot is None:
        found = [Found("not known", "there is no pilot")]
    words = []
    for state, says in _SAYS.items():
        mine = [each for each in found if each.state == state]
        drafts = [text.code(each.draft) for each in mine if each.draft is not None and len(found) > 1]
        if mine:
            what = "; ".join(f"{text.code(each.draft)}: {each.what}" if drafts else each.what for each in mine)
            words.append(says.format(what))
    worst: State = next((state for state in _SAYS if any(each.state == state for each in found)), "not known")
    return Stop(name, rule, worst, " ".join(words))


def _broken(pilot: Evidence | None) -> Stop:
    rule = (
        "`specbench doctor` exits 1, or a run carries one of the warnings "
        f"{text.join(text.code(code) for code in BROKEN)}. One is enough. Mend it and begin anew: what was measured "
        "before does not count."
    )
    found = Found("not met", "it has none of these warnings. Whether the doctor was asked is not known")
    if pilot is not None:
        said = [warning for warning in pilot.summary.warnings if warning.code in BROKEN]
        if said:
            found = Found("met", text.join(text.code(each.code) for each in said))
    return _stop("The set-up is broken", rule, pilot, [found])


def _other_text(pilot: Evidence | None) -> Stop:
    rule = (
        "Under greedy decoding a text leaves that of the target alone where its two best tokens lie further apart than "
        f"{_apart(pilot)}. Rounding does not explain that. One such text is enough: it is probably a bug, and the "
        "verdict is NO-GO."
    )
    found = [Found("not known", "when sampling, texts cannot be compared; the doctor checks how tokens are drawn")]
    if pilot is not None and pilot.facts.sampling.greedy:
        found = [_texts(draft) for draft in pilot.summary.drafts]
    return _stop("The text is not the target's own", rule, pilot, found)


def _apart(pilot: Evidence | None) -> str:
    """How far apart the two best tokens may be for rounding to flip them."""
    if pilot is None:
        units = (f"{_fine(limit)} of it in {dtype}" for dtype, limit in NEAR_TIE.items())
        return f"4 units in the last place of the top logit ({text.join(units)})"
    if pilot.facts.served:
        return f"{NEAR_TIE_NATS:.2g} nats"
    precision = pilot.facts.precision
    return f"{_fine(near_tie_limit(precision))} of the top logit (4 units in the last place in {precision})"


def _fine(share: float) -> str:
    """`3.125%`, `0.000048%`: also what is far below a percent, without an exponent."""
    return f"{100 * share:.6f}".rstrip("0").rstrip(".") + "%"


def _noise(plan: Plan, pilot: Evidence | None) -> Stop:
    effect = abs(plan.min_speedup - 1) or plan.half_width
    asked = "the gain asked for" if plan.min_speedup != 1 else "as far as the interval may reach"
    rule = (
        f"The noise floor is {exactly(effect)} or more, which is {asked}. The floor is how far the target alone lies "
        "from itself when it is measured twice; every table and brief has it. Quiet the machine, or take another."
    )
    floor = None if pilot is None else pilot.summary.noise_floor
    found = Found("not known", f"a floor takes a second baseline over {MIN_PROMPTS} prompts")
    if floor is not None:
        found = Found("met" if floor >= effect else "not met", f"its floor is {floor:.1%}")
    return _stop("The machine is too restless for the question", rule, pilot, [found])


def _biased(plan: Plan, pilot: Evidence | None) -> Stop:
    rule = (
        "The target alone, measured twice, differs from itself by more than chance and by more than "
        f"{exactly(plan.half_width)}, as far as the interval may reach. More prompts do not average that out: quiet "
        "the machine and make the pilot again."
    )
    found = Found("not known", f"that takes a second baseline over {MIN_PROMPTS} prompts")
    own = None if pilot is None else pilot.pilots.get(plan.draft or "")
    if own is not None and own.aa_log_ratio is not None and own.whole.n >= MIN_PROMPTS:
        met = any(warning.code == "noise-floor" for warning in plan.warnings)
        found = Found("met" if met else "not met", f"it differs by {abs(math.expm1(own.aa_log_ratio)):.1%}")
    return _stop("The two baselines differ", rule, pilot, [found])


def exactly(share: float) -> str:
    """`2.5%`: a threshold as it was asked for, not rounded."""
    return f"{100 * share:.10g}%"


def speedup(minimum: float) -> str:
    """`1.10x`, or `1.125x`: a threshold as it was asked for, not rounded."""
    return text.speedup(minimum) if round(minimum, 2) == minimum else f"{minimum:.10g}x"
