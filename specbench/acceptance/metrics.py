"""Counts of rounds to the rates people quote. docs/measuring.md section 1 fixes the words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specbench.records import Round


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened over some rounds. `reached[j-1]` rounds drafted at least j tokens, `survived[j-1]` of them had the
    first j accepted; `rejections` rounds ended in a rejection (the others are censored)."""

    rounds: int
    drafted: int
    accepted: int
    rejections: int
    reached: tuple[int, ...]
    survived: tuple[int, ...]

    @property
    def acceptance_rate(self) -> float | None:
        """r = A / D. It falls as gamma grows, by construction: not comparable across gamma."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def alpha(self) -> float | None:
        """P(a draft is accepted, given that the drafts before it were) = A / (A + R)."""
        judged = self.accepted + self.rejections
        return self.accepted / judged if judged else None

    @property
    def tokens_per_round(self) -> float | None:
        """tau = 1 + A / s, pooled over rounds; the 1 is the correction or the bonus. None without a round."""
        return 1 + self.accepted / self.rounds if self.rounds else None

    @property
    def survival(self) -> tuple[float | None, ...]:
        """s_j = P(the first j drafts are all accepted), over the rounds that drafted at least j."""
        return tuple(s / r if r else None for s, r in zip(self.survived, self.reached, strict=True))


def count(rounds: Iterable[Round], gamma: int) -> Counts:
    """Count rounds that drafted at most `gamma` tokens each. Raises ValueError for an impossible round."""
    total = drafted = accepted = rejections = 0
    reached, survived = [0] * gamma, [0] * gamma
    for r in rounds:
        if not 0 <= r.accepted <= r.drafted <= gamma:
            raise ValueError(f"a round of gamma {gamma} cannot accept {r.accepted} of {r.drafted}")
        total += 1
        drafted += r.drafted
        accepted += r.accepted
        rejections += r.accepted < r.drafted
        for j in range(r.drafted):
            reached[j] += 1
            survived[j] += j < r.accepted
    return Counts(total, drafted, accepted, rejections, tuple(reached), tuple(survived))


def pooled(counts: Sequence[Counts]) -> Counts:
    """Counts of several prompts at one gamma as one."""
    return Counts(
        rounds=sum(c.rounds for c in counts),
        drafted=sum(c.drafted for c in counts),
        accepted=sum(c.accepted for c in counts),
        rejections=sum(c.rejections for c in counts),
        reached=tuple(map(sum, zip(*(c.reached for c in counts), strict=True))),
        survived=tuple(map(sum, zip(*(c.survived for c in counts), strict=True))),
    )
