"""The object that a comparison of two runs prints as JSON and that its tables are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from specbench.records import Call, Caution

SCHEMA = 1

Moved = Literal["acceptance", "cost of a round"]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One of the two runs. `name` is how the other words call it; `load` is that of a server's verdict, None for a run
    in process."""

    run: str
    name: str
    engine: str
    hardware: str
    target: str
    load: str | None


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One arm in one run, over the prompts that both runs have. `round_s` is a round in seconds, `round_steps` in steps
    of the target alone in the same run; None where the engine does not tell its rounds, as is `drafted`, tokens."""

    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    baseline_tokens_per_s: float
    tokens_per_s: float
    tokens_per_round: float | None
    round_s: float | None
    round_steps: float | None
    drafted: int | None = None


@dataclass(frozen=True, slots=True)
class ComparedCategory:
    """One category at one gamma. `ratio` is the second speedup over the first; `same` says that its interval holds 1,
    or that there is none: the same within noise."""

    category: str
    prompts: int
    a_speedup: float
    a_speedup_low: float | None
    a_speedup_high: float | None
    b_speedup: float
    b_speedup_low: float | None
    b_speedup_high: float | None
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    same: bool


@dataclass(frozen=True, slots=True)
class ComparedGamma:
    """One draft at one gamma in both runs, decoding, over the `prompts` that both have. `ratio` and `same` are as for a
    category; `rate` is tokens per second with the draft, the second run over the first. `moved` is the term whose
    logarithm changed more: the speedup is tokens per round over the cost of a round in target steps. None where a term
    is not known or the speedups are the same within noise."""

    gamma: int
    prompts: int
    a: ComparedSide
    b: ComparedSide
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    same: bool
    rate: float
    rate_low: float | None
    rate_high: float | None
    moved: Moved | None
    reason: str
    categories: tuple[ComparedCategory, ...]


@dataclass(frozen=True, slots=True)
class ComparedDraft:
    """One draft that both runs have. `gamma` is the one that `reason` speaks of: the first run's best, where the second
    has it too. The verdicts are those of the whole runs."""

    draft: str
    gamma: int
    a_verdict: Call
    b_verdict: Call
    reason: str
    gammas: tuple[ComparedGamma, ...]


@dataclass(frozen=True, slots=True)
class Slower:
    """How much fewer tokens per second the second run decodes with the draft and gamma that the first one chose, as a
    share: 0.03 is 3 % slower, below 0 is faster. `low` and `high` are the ends of its interval, None without one."""

    draft: str
    gamma: int
    by: float
    low: float | None
    high: float | None

    def surely_above(self, share: float) -> bool:
        """Whether the whole interval lies above `share`; False without an interval."""
        return self.low is not None and self.low > share


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side. `prompts` are in both, by their hash. `only_a` and `only_b` are arms that one run has
    alone, such as `demo:draft gamma 4`. `slower` is None where the first run's choice is in one run alone."""

    schema: int
    a: ComparedRun
    b: ComparedRun
    prompts: int
    drafts: tuple[ComparedDraft, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    slower: Slower | None
    warnings: tuple[Caution, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for `json.dumps`."""
        return asdict(self)
