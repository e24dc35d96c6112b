"""What to collect for a plan: prompts of each category, the minutes they take, and what fewer of them give."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from specbench.analysis.plan import CategoryPlan, Plan
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS, prompts_for_width


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
