"""The object that `plan --json` prints and that the tables of `specbench plan` show. Unknown numbers are None."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from specbench.decision.plan import Spread
from specbench.records import Call, Caution

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Need:
    """Prompts, and minutes for all of them; `low` and `high` at the ends of the spread's interval. None where no
    affordable number of prompts is enough, and where an end or the time of a prompt is not known."""

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
    """One category on its own. `shared_spread` says that it takes the spread that all categories share, because the
    pilot has too few of its prompts; then there is no `verdict`, which would rest on their speedup."""

    category: str
    pilot_prompts: int
    spread: Spread
    shared_spread: bool
    speedup: float
    width: Need
    verdict: Truth | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How many prompts, and how long. `half_width` is a fraction of the speedup; `spread` is described in
    decision.plan, `noise_spread` is the part of it that the target alone has against itself."""

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
    assumed: tuple[str, ...]
    warnings: tuple[Caution, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)
