"""Which draft length and which cut-off together: every pair replayed and priced, without running any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbench.acceptance.replay import Positions, Text, replay
from specbench.cost.model import RoundCosts, predicted_rounds, round_costs
from specbench.decision.holdout import choose_gamma
from specbench.decision.interval import Paired, speedup_interval
from specbench.records import CostPoint

CUTOFFS = tuple(round(0.05 * i, 2) for i in range(20))


@dataclass(frozen=True, slots=True)
class CutoffRow:
    """One cut-off at the gamma that is predicted best with it. `drafted_high` is an upper bound, and `speedup`
    therefore a lower one, where the cut-off may have stopped a draft that was already wrong."""

    cutoff: float
    gamma: int
    tokens_per_round: float
    drafted_high: float
    speedup: float


@dataclass(frozen=True, slots=True)
class BestPair:
    """The pair predicted fastest. `speedup` is cross-fitted over all pairs, as a sweep's is over gammas, so that many
    pairs do not look better than few; `without` is the best gamma without a cut-off. All of decoding, predicted."""

    gamma: int
    cutoff: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    without: float
    rows: tuple[CutoffRow, ...]


def middle_costs(points: Sequence[CostPoint], reader: str) -> RoundCosts | None:
    """What rounds cost in the middle of the contexts that were probed, at batch 1, nothing outside the models: prices
    for texts whose own lengths are not the run's. None without costs."""
    contexts = sorted({point.context for point in points if point.context > 0 and point.batch == 1})
    return round_costs(points, reader, contexts[len(contexts) // 2], 0.0) if contexts else None


def best_pair(
    texts: Sequence[Text],
    points: Sequence[CostPoint],
    gammas: Sequence[int],
    confidence: float,
    reader: str,
    cutoffs: Sequence[float] = CUTOFFS,
) -> BestPair | None:
    """Over the texts of one draft. What a round spends outside the models is taken as nothing, for all pairs alike.
    None without costs, or for a draft that has no confidence to cut at. Gammas beyond the widest pass probed are left
    out."""
    if not texts or not isinstance(texts[0], Positions):
        return None
    costs = middle_costs(points, reader)
    usable = [gamma for gamma in gammas if costs is not None and gamma < len(costs.verify_s)]
    if costs is None or not usable:
        return None
    tokens = np.array([text.tokens - 1.0 for text in texts])
    pairs = {(gamma, cutoff): replay(texts, gamma, cutoff) for cutoff in cutoffs for gamma in usable}
    priced = {
        key: Paired(tokens * costs.step_s, tokens, predicted_rounds(found, costs).total_s, tokens)
        for key, found in pairs.items()
    }
    keys = list(pairs)
    choice = choose_gamma({number: priced[key] for number, key in enumerate(keys)})
    gamma, cutoff = keys[choice.best]
    interval = speedup_interval(choice.paired, confidence)
    rows = []
    for value in cutoffs:
        best = max(usable, key=lambda g: priced[g, value].speedup)
        found = pairs[best, value]
        rows.append(
            CutoffRow(
                value, best, found.tokens_per_round or 1.0, float(found.drafted.sum()), priced[best, value].speedup
            )
        )
    return BestPair(gamma, cutoff, interval.value, interval.low, interval.high, rows[0].speedup, tuple(rows))
