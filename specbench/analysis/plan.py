"""A pilot or stated assumptions to the plan that `specbench plan` shows: prompts and minutes for what is wanted, and
what to collect of each category."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from scipy.special import stdtrit

from specbench import text
from specbench.analysis.cautions import note, warning
from specbench.analysis.facts import MAX_RETRIES, Cost
from specbench.analysis.pilot import Part, Pilot
from specbench.config import RunConfig
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import (
    CHANCE,
    MAX_PROMPTS,
    ON_THE_MINIMUM,
    Spread,
    prompts_for_verdict,
    prompts_for_width,
    repeated,
    spread_of,
)
from specbench.records import Call, Finding, Policy

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Need:
    """Prompts, and minutes for all of them; `low` and `high` at the ends of the spread's interval. None where no
    affordable number is enough, or the time is not known."""

    prompts: int | None
    prompts_low: int | None
    prompts_high: int | None
    minutes: float | None
    minutes_low: float | None
    minutes_high: float | None


@dataclass(frozen=True, slots=True)
class Truth:
    """What it takes to get the verdict that a true `speedup` deserves; None for the verdict at the minimum itself."""

    speedup: float
    verdict: Call | None
    need: Need


@dataclass(frozen=True, slots=True)
class CategoryPlan:
    """One category on its own. With too few prompts in the pilot it takes the spread that all share (`shared_spread`),
    and has no `verdict`."""

    category: str
    pilot_prompts: int
    spread: Spread
    shared_spread: bool
    speedup: float
    width: Need
    verdict: Truth | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How many prompts, and how long. `half_width` is a fraction of the speedup, `noise_spread` the part of the spread
    that the target alone has against itself. `run` is the pilot."""

    run: str | None
    schema: int
    draft: str | None
    pilot_prompts: int | None
    gammas: tuple[int, ...]
    drafts: int
    repeats: int
    half_width: float
    confidence: float
    chance: float
    min_speedup: float
    metric: str
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    spread: Spread
    noise_spread: float | None
    width: Need
    verdict: Truth | None
    truths: tuple[Truth, ...]
    categories: tuple[CategoryPlan, ...]
    every_category: Need | None
    assumed: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


# From this share of the variance on, timing noise is worth fighting before prompts are added.
NOISY_SHARE = 0.5


# A category with fewer prompts in the pilot takes the spread that all categories share.
OWN_SPREAD = 5
# True speedups to show beside the pilot's own, from the minimum.
TRUTHS = (-0.10, -0.05, 0.0, 0.05, 0.10, 0.20)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the next run is to be, and what of it is assumed instead of taken from a pilot. None: as in the pilot."""

    policy: Policy
    half_width: float
    gammas: tuple[int, ...] | None = None
    drafts: int | None = None
    repeats: int | None = None
    spread: float | None = None
    seconds_per_prompt: float | None = None
    speedup: float | None = None


def plan_of(wanted: Wanted, pilot: Pilot | None, run: str | None = None, available: int | None = None) -> Plan:
    """The plan from a pilot, or from `wanted` alone, which then states a spread. `available` prompts are in the pilot's
    workload."""
    return _Planner(wanted, pilot).plan(run, available)


class _Planner:
    def __init__(self, wanted: Wanted, pilot: Pilot | None) -> None:
        self.wanted = wanted
        self.pilot = pilot
        self.policy = wanted.policy
        self.gammas = wanted.gammas or (pilot.gammas if pilot else RunConfig().gamma)
        self.drafts = wanted.drafts or (pilot.drafts if pilot else 1)
        self.repeats = wanted.repeats or (pilot.repeats if pilot else 1)
        whole = [pilot.whole] if pilot else []
        self.noise = self._noise(whole)
        self.spread = self._spread(whole)
        self.speedup, self.low, self.high = self._speedup()

    def plan(self, run: str | None, available: int | None) -> Plan:
        pilot, policy, wanted = self.pilot, self.policy, self.wanted
        cost = self._cost(pilot.whole.cost if pilot else None)
        width = self._need(self.spread, cost, self._for_width)
        verdict = None if self.speedup is None else self._truth(self.spread, cost, self.speedup)
        truths = [round(policy.min_speedup + step, 10) for step in TRUTHS]
        categories = self._categories() if pilot and len(pilot.categories) > 1 else ()
        every = self._together([category.width for category in categories], cost) if cost and categories else None
        needs = [width, *([verdict.need] if verdict else []), *([every] if every else [])]
        shared = [row.category for row in categories if row.shared_spread and wanted.spread is None]
        return Plan(
            run=run,
            schema=SCHEMA,
            draft=pilot.draft if pilot else None,
            pilot_prompts=pilot.whole.n if pilot else None,
            gammas=self.gammas,
            drafts=self.drafts,
            repeats=self.repeats,
            half_width=wanted.half_width,
            confidence=policy.confidence,
            chance=CHANCE,
            min_speedup=policy.min_speedup,
            metric=policy.metric,
            speedup=self.speedup,
            speedup_low=self.low,
            speedup_high=self.high,
            spread=self.spread,
            noise_spread=self.noise.value if self.noise else None,
            width=width,
            verdict=verdict,
            truths=tuple(self._truth(self.spread, cost, truth) for truth in truths if truth > 0),
            categories=categories,
            every_category=every,
            assumed=tuple(self._assumed(cost is not None, shared)),
            warnings=tuple(self._cautions([need.prompts for need in needs if need.prompts is not None], available)),
        )

    def _cautions(self, asked: Sequence[int], available: int | None) -> Iterator[Finding]:
        """What to know before trusting the plan, which asks for so many prompts, of which the workload has
        `available`."""
        minimum, value = self.policy.min_speedup, self.speedup
        if value is not None and abs(math.log(value / minimum)) < ON_THE_MINIMUM:
            hint = "Decide by something else than speed, or ask for another minimum."
            yield warning("speedup-on-minimum", hint, speedup=value)
        elif self.low is not None and self.high is not None and self.low < minimum < self.high:
            hint = "Read the rows of other true speedups too."
            yield warning("speedup-near-minimum", hint, speedup=value, low=self.low, high=self.high, minimum=minimum)
        if available is not None and max(asked, default=0) > available:
            hint = "Collect more prompts of the same kind. The same prompt twice is not two prompts."
            yield warning("more-than-workload", hint, available=available, asked=max(asked))
        if self.pilot is not None:
            yield from self._of_pilot(self.pilot)

    def _of_pilot(self, pilot: Pilot) -> Iterator[Finding]:
        n, share, policy, noise = pilot.whole.n, pilot.whole.slower_share, self.policy, self.noise
        if n < MIN_PROMPTS:
            hint = "Plan for the upper end of the range, or plan again when 16 prompts are measured."
            yield warning("few-pilot-prompts", hint, prompts=n)
        if share > policy.max_slower_share:
            values = {"slower_than": policy.slower_than, "allowed": policy.max_slower_share}
            hint = "Look for the categories that get slower before measuring more."
            yield warning("slower-prompts", hint, share=share, **values)
        if noise is None:
            return
        spread = float(pilot.whole.influence.std(ddof=1))
        if spread and (noise.value / spread) ** 2 >= NOISY_SHARE:
            hint = "Quiet the machine, or plan with more --repeats where prompts are scarce."
            yield warning("noisy-trials", hint, share=(noise.value / spread) ** 2)
        # An A/A arm that is off by more than chance does not average out with prompts.
        reach = float(stdtrit(n - 1, (1 + policy.confidence) / 2)) * noise.value / math.sqrt(n)
        off, half_width = pilot.aa_log_ratio, self.wanted.half_width
        if off is not None and n >= MIN_PROMPTS and abs(off) > max(reach, math.log1p(half_width)):
            hint = "Quiet the machine and make the pilot again."
            yield warning("noise-floor", hint, value=math.exp(off), half_width=half_width)

    def _assumed(self, timed: bool, shared: Sequence[str]) -> Iterator[Finding]:
        """Everything in the plan that was not measured. `timed`: the time of a prompt is known; `shared`: categories
        that take the common spread."""
        wanted, pilot = self.wanted, self.pilot
        stated: dict[str, tuple[float | None, Callable[[float], str]]] = {
            "spread": (wanted.spread, "{:g}".format),
            "speedup": (wanted.speedup, text.speedup),
            "seconds of the target alone for a prompt": (wanted.seconds_per_prompt, "{:g}".format),
        }
        for what, (value, say) in stated.items():
            if value is not None:
                yield note("as-given", what=what, value=say(value))
        if pilot is None and not timed:
            yield note("no-time")
        elif pilot is None:
            yield note("draft-time", by_speedup=wanted.speedup is not None)
            yield note("retries", share=MAX_RETRIES - 1)
            yield note("free-setup")
        else:
            yield from self._from_pilot(pilot, shared)

    def _from_pilot(self, pilot: Pilot, shared: Sequence[str]) -> Iterator[Finding]:
        yield note("pilot-alike")
        if untimed := [gamma for gamma in self.gammas if gamma not in pilot.whole.cost.draft_s]:
            yield note("untimed-gammas", gammas=untimed)
        if not set(self.gammas) & set(pilot.gammas):
            yield note("other-gammas", gammas=list(pilot.gammas))
        if self.drafts > pilot.drafts:
            yield note("more-drafts")
        if self.repeats != pilot.repeats and self.wanted.spread is None:
            yield note("more-repeats", known=pilot.whole.noise is not None)
        if shared:
            yield note("shared-spread", categories=shared, enough=OWN_SPREAD)
        if self.policy.mix:
            yield note("pilot-proportions")

    def _spread(self, parts: Sequence[Part]) -> Spread:
        """The spread within `parts` at the planned repeats; the stated one where there is one."""
        if self.wanted.spread is not None:
            return Spread(self.wanted.spread)
        assert self.pilot is not None
        found = spread_of([part.influence for part in parts], self.policy.confidence)
        # With a prompt in each category what lies within them is not known.
        found = found or spread_of([self.pilot.whole.influence], self.policy.confidence)
        assert found is not None
        noise = self._noise(parts) or self.noise
        return found if noise is None else repeated(found, noise.value, self.repeats / self.pilot.repeats)

    def _noise(self, parts: Sequence[Part]) -> Spread | None:
        groups = [part.noise for part in parts if part.noise is not None]
        return spread_of(groups, self.policy.confidence)

    def _speedup(self) -> tuple[float | None, float | None, float | None]:
        """With the interval of a t-test on its log: rough below 10 prompts, where a run would claim none."""
        if self.wanted.speedup is not None or self.pilot is None:
            return self.wanted.speedup, None, None
        part = self.pilot.whole
        t = float(stdtrit(part.n - 1, (1 + self.policy.confidence) / 2))
        reach = t * float(part.influence.std(ddof=1)) / math.sqrt(part.n)
        return part.speedup, part.speedup * math.exp(-reach), part.speedup * math.exp(reach)

    def _cost(self, cost: Cost | None) -> Cost | None:
        """What a prompt takes, brought to the stated seconds of the target alone if there are any."""
        stated = self.wanted.seconds_per_prompt
        if cost is None and stated is not None:
            return Cost(stated, {1: stated / (self.wanted.speedup or 1.0)}, retries=MAX_RETRIES)
        if cost is None or stated is None:
            return cost
        assert self.pilot is not None
        scale = stated / self.pilot.whole.cost.base_s
        drafted = {gamma: spent * scale for gamma, spent in cost.draft_s.items()}
        return replace(cost, base_s=cost.base_s * scale, draft_s=drafted)

    def _for_width(self, spread: float) -> int | None:
        return prompts_for_width(spread, self.wanted.half_width, self.policy.confidence)

    def _truth(self, spread: Spread, cost: Cost | None, speedup: float) -> Truth:
        policy = self.policy

        def solve(s: float) -> int | None:
            return prompts_for_verdict(s, speedup, policy.min_speedup, policy.confidence)

        distance = math.log(speedup / policy.min_speedup)
        call: Call | None = None if abs(distance) < ON_THE_MINIMUM else "GO" if distance > 0 else "NO-GO"
        return Truth(speedup, call, self._need(spread, cost, solve))

    def _need(self, spread: Spread, cost: Cost | None, solve: Callable[[float], int | None]) -> Need:
        prompts = [None if s is None else solve(s) for s in (spread.value, spread.low, spread.high)]
        minutes = [None if n is None or cost is None else self._minutes(cost, n) for n in prompts]
        return Need(*prompts, *minutes)

    def _minutes(self, cost: Cost, prompts: int) -> float:
        return cost.minutes(prompts, self.gammas, self.drafts, self.repeats)

    def _categories(self) -> tuple[CategoryPlan, ...]:
        assert self.pilot is not None
        parts = self.pilot.categories
        shared = self._spread(list(parts.values()))
        rows = []
        for name, part in parts.items():
            own = part.n >= OWN_SPREAD and self.wanted.spread is None
            spread, cost = self._spread([part]) if own else shared, self._cost(part.cost)
            verdict = self._truth(spread, cost, part.speedup) if own else None
            need = self._need(spread, cost, self._for_width)
            rows.append(CategoryPlan(name, part.n, spread, not own, part.speedup, need, verdict))
        return tuple(rows)

    def _together(self, needs: Sequence[Need], cost: Cost) -> Need:
        columns = list(zip(*(astuple(need) for need in needs), strict=True))
        sums = [None if None in column else sum(column) for column in columns]
        again = (len(needs) - 1) * self._minutes(cost, 0)
        return Need(*sums[:3], *(None if spent is None else spent - again for spent in sums[3:]))


@dataclass(frozen=True, slots=True)
class Portion:
    """One category's part of what is collected: its `share` of requests, and `prompts`, of which `added` only make up
    the ten that an interval takes; both None where the plan has no number. `plan` is the category's own."""

    category: str
    share: float
    prompts: int | None
    added: int | None
    plan: CategoryPlan | None


@dataclass(frozen=True, slots=True)
class Amounts:
    """What to collect, in prompts as the plan counts them: `planned` for the interval and the verdict, and `prompts`
    once every category has its portion; None where no number is enough. `minutes` are for `prompts`."""

    planned: int | None
    prompts: int | None
    minutes: float | None
    portions: tuple[Portion, ...]

    @property
    def added(self) -> int:
        """Prompts that only bring small categories up to the ten that an interval takes."""
        return sum(portion.added or 0 for portion in self.portions)


def amounts(plan: Plan, mix: Mapping[str, float] | None) -> Amounts:
    """The larger of what the interval and the verdict take, dealt out by `mix` or else as the pilot's prompts lie."""
    needs = [plan.width, *([plan.verdict.need] if plan.verdict else [])]
    planned = max((need.prompts for need in needs if need.prompts is not None), default=None)
    portions = _portions(plan, mix, planned)
    prompts = planned
    if planned is not None and portions:
        prompts = sum(portion.prompts or 0 for portion in portions)
    return Amounts(planned, prompts, None if prompts is None else minutes_for(plan, prompts), portions)


def _portions(plan: Plan, mix: Mapping[str, float] | None, planned: int | None) -> tuple[Portion, ...]:
    own = {row.category: row for row in plan.categories}
    parts = dict(mix or {name: float(row.pilot_prompts) for name, row in own.items()})
    portions = []
    for name, part in parts.items():
        share = part / sum(parts.values())
        dealt = None if planned is None else math.ceil(round(planned * share, 9))
        added = None if dealt is None else max(0, MIN_PROMPTS - dealt)
        prompts = None if dealt is None or added is None else dealt + added
        portions.append(Portion(name, share, prompts, added, own.get(name)))
    return tuple(portions)


def minutes_for(plan: Plan, prompts: int) -> float | None:
    """A run is set up once and every prompt takes the same, so two of the plan's own points give any other; None where
    it knows no time."""
    needs = [plan.width, *([plan.verdict.need] if plan.verdict else []), *(truth.need for truth in plan.truths)]
    values: list[tuple[float | None, ...]] = [astuple(need) for need in needs]
    pairs = [(each[i], each[i + 3]) for each in values for i in range(3)]
    known = sorted((n, minutes) for n, minutes in pairs if n is not None and minutes is not None)
    if not known:
        return None
    (fewest, least), (most, longest) = known[0], known[-1]
    if fewest == most:
        return least / fewest * prompts
    return least + (longest - least) / (most - fewest) * (prompts - fewest)


def half_width_of(plan: Plan, prompts: int) -> float | None:
    """How far the interval over so many prompts reaches, in steps of 0.1 % of the speedup and with the plan's chance;
    None below ten prompts and above 200 %."""
    if prompts < MIN_PROMPTS:
        return None
    steps = range(1, 2001)

    def enough(step: int) -> bool:
        return (prompts_for_width(plan.spread.value, step / 1000, plan.confidence) or MAX_PROMPTS + 1) <= prompts

    found = bisect_left(steps, True, key=enough)
    return None if found == len(steps) else steps[found] / 1000
