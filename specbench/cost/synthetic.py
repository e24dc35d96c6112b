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


@dataclass(frozen=True, slots=True)
class Read:
    """A prompt of `tokens` tokens read by an idle server in a pass, at a gamma (0: the target alone), up to its first
    token."""

    number: int
    gamma: int
    tokens: int
    seconds: float


# A draft that adds nothing to the reading of a prompt adds so many steps: a cost is above 0.
LEAST = 1e-6

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


def reading_points(passes: Mapping[int, Pass], reads: Sequence[Read], draft: str) -> list[CostPoint]:
    """What reading a short and a long prompt takes the target alone, and what it takes more with the draft beside it.
    Ratios to a step of the same pass, times the median step, as for rounds."""
    steps = {number: found[0] for number, one in passes.items() if 0 in (found := round_seconds(one))}
    base = {read.number: read for read in reads if not read.gamma and read.number in steps}
    lengths = sorted({read.tokens for read in base.values()})
    middle = lengths[len(lengths) // 2] if lengths else 0
    points = []
    for chosen in (
        [n for n, r in base.items() if r.tokens < middle],
        [n for n, r in base.items() if r.tokens >= middle],
    ):
        alone = {n: base[n].seconds / steps[n] for n in chosen}
        more = [r.seconds / steps[r.number] - alone[r.number] for r in reads if r.gamma and r.number in alone]
        for model, ratios in ((None, list(alone.values())), (draft, more)):
            if ratios:
                tokens, step_s = (
                    round(float(np.median([base[n].tokens for n in chosen]))),
                    float(np.median(list(steps.values()))),
                )
                low, ratio, high = (max(LEAST, each) * step_s for each in median_interval(ratios))
                points.append(CostPoint(model, 0, tokens, ratio, low, high, len(ratios)))
    return points
