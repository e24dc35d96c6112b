"""The object that a comparison of two runs prints as JSON and that its tables are made from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from specbench import text
from specbench.decision.interval import EQUIVALENT, Difference
from specbench.records import Call, Caution, Interval

SCHEMA = 2

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
    """One category at one gamma. `ratio` is B's speedup over A's; `difference` says what its interval resolves: "same"
    is within 5 %, and where it merely holds 1, or there is none, nothing is."""

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
    difference: Difference


@dataclass(frozen=True, slots=True)
class ComparedGamma:
    """One draft at one gamma in both runs, decoding, over the `prompts` that both have. `ratio` and `difference` are as
    for a category; `rate` is tokens per second with the draft, B over A. `moved` is the term whose
    logarithm changed more: the speedup is tokens per round over the cost of a round in target steps. None where a term
    is not known or no difference of the speedups is resolved."""

    gamma: int
    prompts: int
    a: ComparedSide
    b: ComparedSide
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    difference: Difference
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


# Two times, or two taus, that are no further apart are called the same.
_NEAR = 0.05


def term_that_moved(a: ComparedSide, b: ComparedSide) -> Moved | None:
    """A speedup is tau over the cost of a round in target steps, so the log of the ratio of two speedups is the sum of
    what each term adds: the larger of the two. None where one is not known."""
    if a.tokens_per_round is None or b.tokens_per_round is None or a.round_steps is None or b.round_steps is None:
        return None
    tau = abs(math.log(b.tokens_per_round / a.tokens_per_round))
    return "acceptance" if tau > abs(math.log(b.round_steps / a.round_steps)) else "cost of a round"


def reason(
    a: ComparedSide, b: ComparedSide, ratio: Interval, found: Difference, moved: Moved | None, names: tuple[str, str]
) -> str:
    """The sentence without its end: what became of the speedup comes after it. Numbers of the second run first."""
    idle = [name for name, side in zip(names, (a, b), strict=True) if side.drafted == 0]
    if idle:
        return f"Nothing was drafted on {text.join(idle)}: there the target alone was measured against itself"
    head = ""
    if found == "same":
        head = f"The same to within {text.percent(EQUIVALENT)}: "
    elif ratio.low is None or ratio.high is None:
        head = "Too few prompts to tell the two apart: "
    elif found == "not resolved":
        head = f"Not resolved, {text.spread(ratio.low, ratio.high)}: "
    taus, costs = (b.tokens_per_round, a.tokens_per_round), (b.round_steps, a.round_steps)
    if None in taus or None in costs or a.round_s is None or b.round_s is None:
        return (
            f"{head}{'the' if head else 'The'} target alone decodes {b.baseline_tokens_per_s:.1f} tokens/s on "
            f"{names[1]} and {a.baseline_tokens_per_s:.1f} on {names[0]}; what a round gives and costs is not known in "
            "both"
        )
    tau = f"{taus[0]:.2f} against {taus[1]:.2f}"
    cost = f"{costs[0]:.2f} target steps against {costs[1]:.2f}"
    if head:
        return f"{head}a round costs {cost} and gives {tau} tokens"
    if moved == "acceptance":
        return f"Acceptance moved most: a round gives {tau} tokens on {names[1]}, while it costs {cost}"
    step_a, step_b = 1 / a.baseline_tokens_per_s, 1 / b.baseline_tokens_per_s
    steps = f"({text.milliseconds(step_b)} against {text.milliseconds(step_a)})"
    return (
        f"The target's step is {_faster(step_a / step_b)} on {names[1]} {steps}, a round "
        f"{_beside(step_a / step_b, a.round_s / b.round_s)}, so a round costs {costs[0]:.2f} target steps rather than "
        f"{costs[1]:.2f}, at {_tau(b, a)} tau ({tau})"
    )


def verdicts(words: str, a: Call, b: Call) -> str:
    """The sentence with its end."""
    return f"{words}: {a} becomes {b}." if a != b else f"{words}. Both runs say {a}."


def _faster(times: float) -> str:
    if abs(math.log(times)) < _NEAR:
        return "as fast"
    return f"{_times(times)} faster" if times > 1 else f"{_times(1 / times)} slower"


def _beside(step: float, whole: float) -> str:
    """The round's factor after the step's: shorter where both go one way."""
    if abs(math.log(whole)) < _NEAR or abs(math.log(step)) < _NEAR or (step > 1) != (whole > 1):
        return f"is {_faster(whole)}"
    less = abs(math.log(whole)) < abs(math.log(step))
    return f"{'only' if less else 'even'} {_times(max(whole, 1 / whole))}"


def _times(factor: float) -> str:
    return f"{factor:.0f}x" if factor >= 10 else f"{factor:.1f}x"


def _tau(b: ComparedSide, a: ComparedSide) -> str:
    gone = math.log((b.tokens_per_round or 1) / (a.tokens_per_round or 1))
    return "much the same" if abs(gone) < _NEAR else "a higher" if gone > 0 else "a lower"
