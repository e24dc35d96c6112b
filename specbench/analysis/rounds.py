"""Where a round's time goes, which term of it holds the speedup back, and what each term made perfect would give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specbench.analysis.contract import DraftResult, GammaResult, RoundTime
from specbench.records import Policy

Limit = Literal["acceptance", "drafting", "verifying", "the rest"]

# Below this many target steps of extra round time, cheaper rounds can hardly help.
NEAR_FLOOR = 0.15


@dataclass(frozen=True, slots=True)
class Cost:
    """One round at `row`'s gamma. `times` are its parts and `tau` its tokens; `step_s` is the target alone, seconds per
    token; `limit` is the term that holds the speedup back most."""

    row: GammaResult
    times: RoundTime
    tau: float
    step_s: float
    limit: Limit

    @property
    def round_s(self) -> float:
        return self.times.total_s

    @property
    def steps(self) -> float:
        """Round time in target steps: also the tokens per round needed to break even."""
        return self.round_s / self.step_s

    @property
    def extra(self) -> dict[Limit, float]:
        """Seconds of a round beyond one target step, by term."""
        return {
            "drafting": self.times.draft_s,
            "verifying": max(0.0, self.times.verify_s - self.step_s),
            "the rest": self.times.other_s,
        }

    @property
    def extra_s(self) -> float:
        return sum(self.extra.values())

    @property
    def near_floor(self) -> bool:
        """Whether a round costs little more than a step of the target."""
        return self.extra_s < NEAR_FLOOR * self.step_s

    @property
    def if_perfect(self) -> dict[str, float]:
        """The speedup of decoding with one term made perfect and the others as measured."""
        times, tau, step = self.times, self.tau, self.step_s
        verify_s = min(times.verify_s, step)
        return {
            "drafting": tau * step / (times.verify_s + times.other_s),
            "verifying": tau * step / (times.draft_s + verify_s + times.other_s),
            "the rest": tau * step / (times.draft_s + times.verify_s),
            "acceptance": (self.row.gamma + 1) / self.steps,
        }

    @property
    def one_more(self) -> tuple[float, float] | None:
        """What the last drafted token adds and what one more would take, as shares of tokens and time of a round; the
        next one's time is taken as the mean of those before it. None where survival is not known."""
        last = self.row.survival[-1] if self.row.survival else None
        if last is None:
            return None
        return last / self.tau, self.one_more_s / self.round_s

    @property
    def one_more_s(self) -> float:
        return (self.times.draft_s + self.extra["verifying"]) / self.row.gamma


def cost(draft: DraftResult, policy: Policy) -> Cost | None:
    """One round at the best gamma; None where no round was run, or its parts are not known.

    Acceptance is the limit where even rounds at the price of one step would miss the policy's minimum, or where
    they already cost little more than that; else it is the dearest term.
    """
    row = draft.best
    if row.tokens_per_round is None or row.round_time is None:
        return None
    found = Cost(row, row.round_time, row.tokens_per_round, 1 / draft.baseline_tokens_per_s, "acceptance")
    if found.tau < policy.min_speedup or found.near_floor:
        return found
    limit: Limit = max(found.extra, key=lambda term: found.extra[term])
    return Cost(found.row, found.times, found.tau, found.step_s, limit)
