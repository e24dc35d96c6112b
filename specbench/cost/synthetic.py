"""What a round costs on a server that rejects every draft: then a round emits one token, so that the time per token is
that of a round (docs/measuring.md).

Not every round of such a text drafts gamma tokens: the last ones are cut where the text is, and a look-up may find
nothing. What these cost is known from servers with a smaller gamma and from the target alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specbench.cost.probe import median_interval
from specbench.records import CostPoint


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of decoding of some texts, and how many rounds drafted 0, 1, .. tokens."""

    seconds: float
    rounds: Mapping[int, int]


# One pass: what was spent by the target alone (0) and at every gamma, on the same prompts, one after the other.
Pass = Mapping[int, Spent]


def round_seconds(spent: Pass) -> dict[int, float]:
    """Seconds of a round that drafts so many tokens, for 0 and for every gamma at which any did: what is left of the
    time after all shorter rounds, those of a length that was not asked for interpolated."""
    found: dict[int, float] = {}
    for gamma in sorted(spent):
        whole = spent[gamma].rounds.get(gamma, 0)
        if not whole or (gamma and 0 not in found):
            continue
        rest_s, share = spent[gamma].seconds, float(whole)
        last = max(found, default=0)
        for drafted, count in spent[gamma].rounds.items():
            if drafted == gamma:
                continue
            if drafted <= last:
                rest_s -= count * float(np.interp(drafted, list(found), list(found.values())))
            else:  # between the last known one and this one
                part = (drafted - last) / (gamma - last)
                rest_s -= count * (1 - part) * found[last]
                share += count * part
        if rest_s > 0:  # else the machine was another during this one
            found[gamma] = rest_s / share
    return found


def round_points(passes: Sequence[Pass], draft: str, context: int, batch: int) -> list[CostPoint]:
    """A step of the target alone, and a round of every gamma. The ratio of a round to a step is taken pass by pass,
    where both ran within seconds of each other, so the drift of a machine is in neither the median nor its interval;
    seconds are these ratios times the median step. `tokens` of a point are those that the target reads: 1 of a step,
    gamma + 1 of a round."""
    each = [round_seconds(one) for one in passes]
    steps = [one[0] for one in each if 0 in one]
    if not steps:
        return []
    low_s, step_s, high_s = median_interval(steps)
    found = [CostPoint(draft, context, 1, step_s, low_s, high_s, len(steps), batch, "round")]
    for gamma in sorted({gamma for one in each for gamma in one if gamma}):
        ratios = [one[gamma] / one[0] for one in each if gamma in one and 0 in one]
        low, ratio, high = median_interval(ratios)
        found.append(
            CostPoint(
                draft, context, gamma + 1, ratio * step_s, low * step_s, high * step_s, len(ratios), batch, "round"
            )
        )
    return found
