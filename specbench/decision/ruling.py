"""When a gamma needs no more prompts: it is surely not the best of its draft, by trials and by prediction alike; and
when a run under a time budget needs none, since its verdict is sure.

The trials are held to an interval in which all looks and all pairs of gammas have their share, since who looks often
finds something. The prediction must agree beyond its own error, and in every category, since each has a gamma of its
own, and a mix of traffic may be asked for afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from specbench.decision.interval import MIN_PROMPTS, Paired
from specbench.decision.plan import influence, spread_of
from specbench.records import Policy, RuledOut

# That a whole run rules out nothing which is not slower, as far as trials tell.
CONFIDENCE = 0.99
# Of each limit of a prediction, over texts.
PREDICTED = 0.95
# So much slower a gamma must be predicted: a smaller difference is within what costs and replay are off by.
MARGIN = 0.05
# Gammas of a draft that always stay: without a second there is nothing to choose.
STAY = 2


def look_sizes(prompts: int) -> tuple[int, ...]:
    """After how many of `prompts` a run looks: as soon as there can be an interval, and whenever they have doubled."""
    sizes = (MIN_PROMPTS << doubled for doubled in range(prompts.bit_length()))
    return tuple(takewhile(lambda size: size < prompts, sizes))


@dataclass(frozen=True, slots=True)
class Standing:
    """One draft at a look. `measured` and `predicted` hold, for each gamma still measured that drafts at all, target
    alone and draft over the same prompts; `category` [n] is of each prompt, `categories` are all of the workload.
    `excess` is the variance of a log ratio that the A/A arm shows beyond the scatter of prompts, `planned` the number
    of prompts, `gammas` of draft lengths that the run began with."""

    draft: str
    measured: Mapping[int, Paired]
    predicted: Mapping[int, Paired]
    category: NDArray[np.object_]
    categories: Collection[str]
    excess: float
    planned: int
    gammas: int
    drafts: int

    @property
    def per_question(self) -> float:
        """Confidence of one comparison at one look, such that all of the run's hold together (Bonferroni)."""
        questions = len(look_sizes(self.planned)) * self.drafts * self.gammas * (self.gammas - 1)
        return 1 - (1 - CONFIDENCE) / questions


def rule(standing: Standing) -> tuple[RuledOut, ...]:
    """The gammas to stop now: all but the STAY fastest may be, each against the fastest."""
    spent = {gamma: pair.spec_s.sum() / pair.spec_tokens.sum() for gamma, pair in standing.measured.items()}
    ranked = sorted(spent, key=lambda gamma: spent[gamma])
    found = (_against(standing, ranked[0], gamma) for gamma in sorted(ranked[STAY:]))
    return tuple(one for one in found if one is not None)


def settled(arms: Sequence[Paired], policy: Policy, looks: int, excess: float) -> Literal["GO", "NO-GO"] | None:
    """GO where one of `arms`, target alone and a draft at one gamma, surely reaches the minimum asked for, NO-GO where
    surely none does, None where more prompts might tell. The policy's error is shared by all arms and all `looks`
    (Bonferroni), so that looking often finds no more than looking once; gates are another matter."""
    each = 1 - (1 - policy.confidence) / (looks * len(arms))
    limits = [_limits(arm, each, excess) for arm in arms]
    if any(low >= policy.min_speedup for low, _ in limits):
        return "GO"
    return "NO-GO" if all(high < policy.min_speedup for _, high in limits) else None


def _against(standing: Standing, best: int, gamma: int) -> RuledOut | None:
    if not {best, gamma} <= set(standing.predicted):
        return None  # it drafts more than was probed
    measured = _ratio(standing.measured, best, gamma)
    predicted = _ratio(standing.predicted, best, gamma)
    low, high = _limits(measured, standing.per_question, standing.excess)
    _, predicted_high = _limits(predicted, PREDICTED)
    slower = high < 1 and predicted_high < 1 - MARGIN and _in_every_category(standing, predicted)
    if not slower:
        return None
    return RuledOut(
        draft=standing.draft,
        gamma=gamma,
        prompts=measured.n,
        planned=standing.planned,
        against=best,
        ratio=measured.speedup,
        ratio_low=low,
        ratio_high=high,
        confidence=CONFIDENCE,
        predicted_ratio=predicted.speedup,
        predicted_ratio_high=predicted_high,
    )


def _ratio(arms: Mapping[int, Paired], best: int, gamma: int) -> Paired:
    """How fast `gamma` is in terms of `best`."""
    return Paired(arms[best].spec_s, arms[best].spec_tokens, arms[gamma].spec_s, arms[gamma].spec_tokens)


def _limits(ratio: Paired, confidence: float, excess: float = 0.0) -> tuple[float, float]:
    """Each end holds with `confidence`: Student's t on the log ratio of totals, whose standard error is that of the
    prompts' influence on it (delta method). The bootstrap of reported intervals cannot see so far into its tails.

    Few long prompts tell no more than their number, so the degrees of freedom are those of the effective one (Kish):
    with n - 1, ten prompts of uneven length rule out 2.7 % of equals at 99 %, so 0.6 %."""
    error = math.sqrt(influence(ratio).var(ddof=1) / ratio.n + excess)
    share = ratio.base_s / ratio.base_s.sum() + ratio.spec_s / ratio.spec_s.sum()
    effective = share.sum() ** 2 / (share**2).sum()
    reach = float(stdtrit(effective - 1, confidence)) * error
    return ratio.speedup * math.exp(-reach), ratio.speedup * math.exp(reach)


def _in_every_category(standing: Standing, predicted: Paired) -> bool:
    """Whether the prediction is below 1 in each category by itself. One with few texts borrows the spread of all."""
    parts = [predicted.take(standing.category == name) for name in sorted(standing.categories)]
    if not all(part.decoded for part in parts):
        return False  # nothing is known of a category
    spread = spread_of([influence(part) for part in parts], PREDICTED)
    if spread is None:
        return False
    t = float(stdtrit(predicted.n - len(parts), PREDICTED))
    return all(math.log(part.speedup) + t * spread.value / math.sqrt(part.n) < 0 for part in parts)
