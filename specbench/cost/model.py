"""What a round costs, and what speedup follows: measured costs and replayed rounds in, a prediction out.

    S = tokens * (t_dec + h) / sum over rounds of (t_draft(d) + t_verify(d + 1) + h)

for rounds that draft d tokens (docs/measuring.md). Leviathan's closed form is the case t_verify = t_dec, h = 0 and
independent acceptance; it stands beside for reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbench.acceptance.replay import Expected
from specbench.records import CostPoint


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """Seconds, all at one context length and batch. `verify_s[n-1]` is the target over n tokens, so `verify_s[0]` is
    one decoding step; `draft_s` and `catch_up_s` are the draft over one and over two tokens (the first step after a
    round that accepted everything); `other_s` is what a round spends outside both models."""

    verify_s: tuple[float, ...]
    draft_s: float
    catch_up_s: float
    other_s: float

    def round_s(self, drafted: int) -> float:
        """A round that drafts so many tokens, without catch-up. Raises IndexError beyond what was probed."""
        return drafted * self.draft_s + self.verify_s[drafted] + self.other_s

    @property
    def step_s(self) -> float:
        """The target alone, per token."""
        return self.verify_s[0] + self.other_s


def round_costs(
    points: Sequence[CostPoint], draft: str | None, context: float, other_s: float, batch: int = 1
) -> RoundCosts:
    """Probed medians at one context length and batch, between the lengths that were probed linear, beyond them held. A
    draft that was not probed (n-gram look-up: microseconds) costs nothing."""
    steps = [p for p in points if p.batch == batch and p.context > 0]

    def at(model: str | None, tokens: int) -> float:
        mine = sorted((p for p in steps if p.model == model and p.tokens == tokens), key=lambda p: p.context)
        return float(np.interp(context, [p.context for p in mine], [p.median_s for p in mine])) if mine else 0.0

    widest = max(p.tokens for p in steps if p.model is None)
    verify_s = tuple(at(None, tokens) for tokens in range(1, widest + 1))
    return RoundCosts(verify_s, at(draft, 1), at(draft, 2), other_s)


def predicted_speedup(found: Expected, tokens: float, costs: RoundCosts) -> float | None:
    """Decode-only speedup at the gamma of `found`, over `tokens` decoded; None without a round."""
    rounds = float(found.rounds.sum())
    if not rounds:
        return None
    at_least = np.array([rounds, *found.reached.sum(0), 0.0])  # rounds that drafted at least 0, 1, .. gamma tokens
    by_drafted = at_least[:-1] - at_least[1:]
    spent_s = sum(count * costs.round_s(drafted) for drafted, count in enumerate(by_drafted))
    spent_s += float(found.catch_ups.sum()) * (costs.catch_up_s - costs.draft_s)
    return float(tokens * costs.step_s / spent_s)


def closed_form(alpha: float, gamma: int, c: float) -> float:
    """Leviathan et al. 2023, Theorem 3.8: speedup if drafts are accepted independently with probability alpha, a draft
    step costs c target steps and verifying costs one. It ranks, it does not predict."""
    return tokens_per_round(alpha, gamma) / (gamma * c + 1)


def tokens_per_round(alpha: float, gamma: int) -> float:
    """tau = 1 + alpha + .. + alpha^gamma, for independent acceptance."""
    return float(sum(alpha**j for j in range(gamma + 1)))


def break_even_alpha(gamma: int, c: float, v: float, h: float = 0.0) -> float | None:
    """The alpha at which a round of gamma drafts pays for itself, if a draft step costs c, verifying gamma + 1 tokens v
    and the rest h target steps; None where not even alpha = 1 pays, 0 where drafting costs nothing."""
    from scipy.optimize import brentq

    cost = gamma * c + v + h
    if cost > gamma + 1:
        return None
    if cost <= 1:
        return 0.0
    return float(brentq(lambda alpha: tokens_per_round(alpha, gamma) - cost, 0.0, 1.0))


def break_even_draft(tau: float, gamma: int, v: float, h: float = 0.0) -> float | None:
    """The most that a draft step may cost, in target steps, at `tau` tokens per round; None where even a free draft
    would not pay."""
    c = (tau - v - h) / gamma
    return c if c >= 0 else None


def another_pays(survival: Sequence[float | None], k: int, costs: RoundCosts) -> bool | None:
    """Whether drafting token k + 1 raises the speedup: s_(k+1) / tau(k) against its extra time over the time of a round
    of k. None where survival or cost at k + 1 is not known."""
    known = survival[: k + 1]
    if len(known) <= k or None in known or len(costs.verify_s) <= k + 1:
        return None
    values = [value for value in known if value is not None]
    tau = 1 + sum(values[:k])
    extra_s = costs.round_s(k + 1) - costs.round_s(k)
    return values[k] / tau > extra_s / costs.round_s(k)
