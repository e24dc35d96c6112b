"""Why two speedups differ, as a sentence made from their terms: tokens per round, a step, a round."""

from __future__ import annotations

import math

from specbench import text
from specbench.analysis.compare.contract import ComparedSide, Moved
from specbench.records import Call

# Two times, or two taus, that are no further apart are called the same.
_NEAR = 0.05


def term_that_moved(a: ComparedSide, b: ComparedSide) -> Moved | None:
    """A speedup is tau over the cost of a round in target steps, so the log of the ratio of two speedups is the sum of
    what each term adds: the larger of the two. None where one is not known."""
    if a.tokens_per_round is None or b.tokens_per_round is None or a.round_steps is None or b.round_steps is None:
        return None
    tau = abs(math.log(b.tokens_per_round / a.tokens_per_round))
    return "acceptance" if tau > abs(math.log(b.round_steps / a.round_steps)) else "cost of a round"


def reason(a: ComparedSide, b: ComparedSide, same: bool, moved: Moved | None, names: tuple[str, str]) -> str:
    """The sentence without its end: what became of the speedup comes after it. Numbers of the second run first."""
    idle = [name for name, side in zip(names, (a, b), strict=True) if side.drafted == 0]
    if idle:
        return f"Nothing was drafted on {text.join(idle)}: there the target alone was measured against itself"
    head = ""
    if same:
        head = "The same within noise: " if a.speedup_low is not None else "Too few prompts to tell the two apart: "
    taus, costs = (b.tokens_per_round, a.tokens_per_round), (b.round_steps, a.round_steps)
    if None in taus or None in costs or a.round_s is None or b.round_s is None:
        return (
            f"{head}{'the' if head else 'The'} target alone decodes {b.baseline_tokens_per_s:.1f} tokens/s on "
            f"{names[1]} and {a.baseline_tokens_per_s:.1f} on {names[0]}; what a round gives and costs is not known in "
            "both"
        )
    tau = f"{taus[0]:.2f} against {taus[1]:.2f}"
    cost = f"{costs[0]:.2f} target steps against {costs[1]:.2f}"
    if same:
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
