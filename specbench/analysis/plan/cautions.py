"""What to know before trusting a plan: what it assumes, and where more prompts would not help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from specbench import text
from specbench.analysis.pace import MAX_RETRIES
from specbench.analysis.plan.pilot import Pilot
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import ON_THE_MINIMUM, Spread
from specbench.records import Finding, Policy, warned

# From this share of the variance on, timing noise is worth fighting before prompts are added.
NOISY_SHARE = 0.5


def plan_cautions(
    pilot: Pilot | None,
    policy: Policy,
    speedup: tuple[float | None, float | None, float | None],
    noise: Spread | None,
    half_width: float,
    asked: Sequence[int | None],
    available: int | None,
) -> tuple[Finding, ...]:
    """`speedup` with the ends of its interval; `noise`: the spread of the target alone against itself; `asked`: the
    prompts that the plan asks for, of which the workload has `available`."""
    found = [_open(policy, speedup), _more_than(asked, available)]
    if pilot is not None:
        found += [_few(pilot), _slower(pilot, policy), _noisy(pilot, noise), _biased(pilot, policy, noise, half_width)]
    return tuple(caution for caution in found if caution is not None)


def _few(pilot: Pilot) -> Finding | None:
    if pilot.whole.n >= MIN_PROMPTS:
        return None
    return warned(
        "few-pilot-prompts",
        f"the pilot has {text.count(pilot.whole.n, 'prompt')}, which know their own spread only roughly",
        "Plan for the upper end of the range, or plan again when 16 prompts are measured.",
    )


def _open(policy: Policy, speedup: tuple[float | None, float | None, float | None]) -> Finding | None:
    value, low, high = speedup
    if value is None:
        return None
    if abs(math.log(value / policy.min_speedup)) < ON_THE_MINIMUM:
        return warned(
            "speedup-on-minimum",
            f"a speedup of {text.speedup(value)} lies on the minimum asked for: no number of prompts would tell them "
            "apart",
            "Decide by something else than speed, or ask for another minimum.",
        )
    if low is None or high is None or not low < policy.min_speedup < high:
        return None
    return warned(
        "speedup-near-minimum",
        f"the pilot leaves open on which side of {text.speedup(policy.min_speedup)} the speedup lies "
        f"({text.interval(low, high)}); nearer to it than {text.speedup(value)}, a verdict takes more prompts, and on "
        "it no number is enough",
        "Read the rows of other true speedups too.",
    )


def _more_than(asked: Sequence[int | None], available: int | None) -> Finding | None:
    most = max((n for n in asked if n is not None), default=0)
    if available is None or most <= available:
        return None
    return warned(
        "more-than-workload",
        f"the pilot's workload has {text.count(available, 'prompt')}, and the plan asks for up to {most:,}",
        "Collect more prompts of the same kind. The same prompt twice is not two prompts.",
    )


def _slower(pilot: Pilot, policy: Policy) -> Finding | None:
    if pilot.whole.slower_share <= policy.max_slower_share:
        return None
    return warned(
        "slower-prompts",
        f"{text.percent(pilot.whole.slower_share)} of the pilot's prompts run below {text.speedup(policy.slower_than)} "
        f"(at most {text.percent(policy.max_slower_share)} allowed): if that stays so the verdict is NO-GO, however "
        "many prompts",
        "Look for the categories that get slower before measuring more.",
    )


def _noisy(pilot: Pilot, noise: Spread | None) -> Finding | None:
    spread = float(pilot.whole.influence.std(ddof=1))
    share = 0.0 if noise is None or not spread else (noise.value / spread) ** 2
    if share < NOISY_SHARE:
        return None
    return warned(
        "noisy-trials",
        f"{'all' if share >= 1 else text.percent(share)} of the spread's variance is there without a draft too: timing "
        "noise, not prompts",
        "Quiet the machine, or plan with more --repeats where prompts are scarce.",
    )


def _biased(pilot: Pilot, policy: Policy, noise: Spread | None, half_width: float) -> Finding | None:
    """An A/A arm that is off by more than chance does not average out with prompts."""
    if noise is None or pilot.aa_log_ratio is None or pilot.whole.n < MIN_PROMPTS:
        return None
    n = pilot.whole.n
    reach = float(stdtrit(n - 1, (1 + policy.confidence) / 2)) * noise.value / math.sqrt(n)
    if abs(pilot.aa_log_ratio) <= max(reach, math.log1p(half_width)):
        return None
    return warned(
        "noise-floor",
        f"the target alone, measured twice, differs from itself by {abs(math.expm1(pilot.aa_log_ratio)):.1%}, which is "
        f"more than chance and more than the {half_width:.1%} asked for: more prompts do not remove it",
        "Quiet the machine and make the pilot again.",
    )


def assumptions(
    pilot: Pilot | None,
    *,
    given: dict[str, str],
    timed: bool,
    gammas: Sequence[int],
    drafts: int,
    repeats: int,
    shared: Sequence[str],
    mixed: bool,
) -> tuple[str, ...]:
    """Everything in the plan that was not measured, a sentence each. `given`: the values that flags state; `timed`:
    the time of a prompt is known; `shared`: categories that take the common spread; `mixed`: the policy weighs
    categories, which the plan does not."""
    said = [f"{what} {value}, as given" for what, value in given.items()]
    if pilot is None:
        return (*said, *_about_time("speedup" in given)) if timed else (*said, "nothing about time: no minutes")
    said.append("prompts like the pilot's, in the same mix of categories, on a machine as fast and as quiet")
    untimed = [gamma for gamma in gammas if gamma not in pilot.whole.cost.draft_s]
    if untimed:
        said.append(f"time at gamma {text.join(map(str, untimed))}: from the nearest draft lengths of the pilot")
    if not set(gammas) & set(pilot.gammas):
        said.append(f"speedup and spread are those of gamma {text.join(map(str, pilot.gammas))}")
    if drafts > pilot.drafts:
        said.append("every further draft takes as long as those of the pilot, and its spread is no wider")
    if repeats != pilot.repeats and "spread" not in given:
        what = "is what repeats average out" if pilot.whole.noise is not None else "is unknown, so repeats gain nothing"
        said.append(f"the spread of the target alone against itself {what}")
    if shared:
        said.append(f"the spread within {text.join(shared)} is that within all categories together")
    if mixed:
        said.append("categories in the pilot's own proportions, not in those of the policy's mix")
    return tuple(said)


def _about_time(with_speedup: bool) -> tuple[str, ...]:
    draft = "what the target alone takes, divided by the speedup" if with_speedup else "as long as the target alone"
    return (
        f"with a draft a prompt takes {draft}",
        f"{MAX_RETRIES - 1:.0%} of trials are repeated, as many as a run repeats at most",
        "loading, warm-up, timing the models alone and scoring take no time",
    )
