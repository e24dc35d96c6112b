"""A pilot or stated assumptions to the plan that `specbench plan` shows: prompts and minutes for what is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

from scipy.special import stdtrit

from specbench import text
from specbench.analysis.pace import MAX_RETRIES, Cost
from specbench.analysis.plan.cautions import assumptions, plan_cautions
from specbench.analysis.plan.contract import SCHEMA, CategoryPlan, Need, Plan, Truth
from specbench.analysis.plan.pilot import Part, Pilot
from specbench.config import RunConfig
from specbench.decision.plan import (
    CHANCE,
    ON_THE_MINIMUM,
    Spread,
    prompts_for_verdict,
    prompts_for_width,
    repeated,
    spread_of,
)
from specbench.records import Call, Policy

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
        self.noise = self._noise([pilot.whole]) if pilot else None
        self.spread = self._spread([pilot.whole] if pilot else [])
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
            assumed=assumptions(
                pilot,
                given=self._given(),
                timed=cost is not None,
                gammas=self.gammas,
                drafts=self.drafts,
                repeats=self.repeats,
                shared=[row.category for row in categories if row.shared_spread and wanted.spread is None],
                mixed=bool(policy.mix),
            ),
            warnings=plan_cautions(
                pilot,
                policy,
                (self.speedup, self.low, self.high),
                self.noise,
                wanted.half_width,
                [need.prompts for need in needs],
                available,
            ),
        )

    def _spread(self, parts: Sequence[Part]) -> Spread:
        """The spread within `parts` at the planned repeats; the stated one where there is one."""
        if self.wanted.spread is not None:
            return Spread(self.wanted.spread)
        assert self.pilot is not None
        found = spread_of([part.influence for part in parts], self.policy.confidence)
        if found is None:  # a prompt in each category: what lies within them is not known
            found = spread_of([self.pilot.whole.influence], self.policy.confidence)
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
        if cost is None:
            if stated is None:
                return None
            return Cost(stated, {1: stated / (self.wanted.speedup or 1.0)}, retries=MAX_RETRIES)
        assert self.pilot is not None
        if stated is None:
            return cost
        scale = stated / self.pilot.whole.cost.base_s
        return replace(
            cost, base_s=cost.base_s * scale, draft_s={gamma: spent * scale for gamma, spent in cost.draft_s.items()}
        )

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
        """All of `needs` in one run, which is set up once."""
        columns = list(zip(*(astuple(need) for need in needs), strict=True))
        sums = [None if None in column else sum(column) for column in columns]
        again = (len(needs) - 1) * self._minutes(cost, 0)
        return Need(*sums[:3], *(None if spent is None else spent - again for spent in sums[3:]))

    def _given(self) -> dict[str, str]:
        wanted = self.wanted
        values = {
            "spread": None if wanted.spread is None else f"{wanted.spread:g}",
            "speedup": None if wanted.speedup is None else text.speedup(wanted.speedup),
            "seconds of the target alone for a prompt": None
            if wanted.seconds_per_prompt is None
            else f"{wanted.seconds_per_prompt:g}",
        }
        return {what: value for what, value in values.items() if value is not None}
