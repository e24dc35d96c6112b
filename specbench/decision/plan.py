"""How many prompts an interval or a verdict needs, given how much prompts differ.

On the log of the speedup the standard error over n prompts is s / sqrt(n), where s, the *spread*, is the standard
deviation of the prompts' influence on it (delta method, as in the interval itself). A pilot gives s, and s gives n.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specbench.decision.interval import MIN_PROMPTS, Floats, Paired

# The chance with which a run of the planned size gets what was asked for; 0.8 is what trials are usually planned with.
CHANCE = 0.8
MAX_PROMPTS = 100_000

# Below this distance from the minimum, in logs, a speedup is taken to lie on it.
ON_THE_MINIMUM = 1e-6

# Fewer values say nothing about how heavy their tails are.
_VALUES_FOR_TAILS = 5


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviation of the prompts' influence on the log speedup; about 0.2 means that one prompt alone misses by
    20 %. `low` and `high` hold the true one at the plan's confidence; None where it was assumed."""

    value: float
    low: float | None = None
    high: float | None = None


def influence(paired: Paired) -> Floats:
    """What each prompt does to the log of the speedup of totals [n], around 0; the mean of n of these has the standard
    error of the log speedup."""
    parts = (paired.base_s, paired.spec_tokens), (paired.base_tokens, paired.spec_s)
    above, below = (sum((column / column.sum() for column in columns), np.zeros(paired.n)) for columns in parts)
    return paired.n * (above - below)


def spread_of(groups: Sequence[Floats], confidence: float) -> Spread | None:
    """The spread that `groups` of influences share, each group around its own mean; None without two in any group.

    The interval is that of Bonett 2006 (Computational Statistics & Data Analysis 50, 775-782), which allows for heavy
    tails: around 15 prompts of uneven length it holds the truth in 91 to 96 % of cases, the textbook chi-square in 84
    to 97 %. Below five values, which cannot show tails, it is the chi-square interval.
    """
    from scipy.special import chdtri, ndtri

    rest = np.concatenate([group - group.mean() for group in groups if len(group)] or [np.zeros(0)])
    freedom = len(rest) - sum(len(group) > 0 for group in groups)
    if freedom < 1:
        return None
    variance = float((rest**2).sum()) / freedom
    tail = (1 - confidence) / 2
    if variance <= 1e-18:
        return Spread(0.0, 0.0, 0.0)
    if len(rest) < _VALUES_FOR_TAILS:
        low, high = (variance * freedom / float(chdtri(freedom, p)) for p in (tail, 1 - tail))
    else:
        low, high = _bonett(rest, variance, float(ndtri(1 - tail)))
    return Spread(math.sqrt(variance), math.sqrt(min(low, variance)), math.sqrt(max(high, variance)))


def spread_to_settle(paired: Paired, confidence: float, excess: float) -> float | None:
    """The spread that counts the prompts which a verdict still takes, in a run's brief and in a plan from it alike:
    that of its prompts and, as long as nobody quiets the machine, the `excess` variance of its log speedup. None for
    fewer than two prompts."""
    found = spread_of([influence(paired)], confidence)
    return None if found is None else math.sqrt(found.value**2 + excess * paired.n)


def _bonett(values: Floats, variance: float, z: float) -> tuple[float, float]:
    """Interval of the variance of `values` [n], which are centred."""
    n = len(values)
    cut = int(n / (2 * math.sqrt(n - 4)))  # a share of 1 / (2 sqrt(n - 4)) off each end, in values
    trimmed = float(np.sort(values)[min(cut, (n - 1) // 2) : n - min(cut, (n - 1) // 2)].mean())
    kurtosis = n * float(((values - trimmed) ** 4).sum()) / float((values**2).sum()) ** 2
    scale = n / max(n - z, 1.0)
    error = scale * math.sqrt(max(kurtosis - (n - 3) / n, 0.0) / (n - 1))
    return variance * scale * math.exp(-z * error), variance * scale * math.exp(z * error)


def repeated(spread: Spread, noise: float, more: float) -> Spread:
    """The spread with `more` times as many repeats. Only the part that is `noise`, the spread of the target alone
    against itself, averages away; what prompts differ by stays."""
    if spread.value == 0:
        return spread
    share = min(1.0, (noise / spread.value) ** 2)
    factor = math.sqrt(1 - share + share / more)
    low, high = (None if end is None else end * factor for end in (spread.low, spread.high))
    return Spread(spread.value * factor, low, high)


def prompts_for_width(spread: float, half_width: float, confidence: float) -> int | None:
    """Prompts with which the interval reaches no further than `half_width` (a fraction of the speedup) to either side,
    with a chance of CHANCE; None above MAX_PROMPTS.

    n = (t s / log(1 + half_width))^2 would be met by half of all runs, since a run's own s varies; this asks for the
    s that CHANCE of them stay below (Kupper and Hafner 1989, The American Statistician 43, 101-105).
    """
    from scipy.special import chdtri, stdtrit

    def enough(n: int) -> bool:
        freedom = n - 1
        own = spread * math.sqrt(float(chdtri(freedom, 1 - CHANCE)) / freedom)
        return float(stdtrit(freedom, (1 + confidence) / 2)) * own <= math.log1p(half_width) * math.sqrt(n)

    return _smallest(enough)


def prompts_for_verdict(spread: float, speedup: float, min_speedup: float, confidence: float) -> int | None:
    """Prompts with which a true `speedup` above the minimum gets its GO, or one below it its NO-GO, with a chance of
    CHANCE; None on the minimum, or above MAX_PROMPTS. The gates beside the speedup are not part of this."""
    from scipy.special import ndtr, stdtrit

    distance = abs(math.log(speedup / min_speedup))
    if distance < ON_THE_MINIMUM:
        return None
    if spread == 0:
        return MIN_PROMPTS

    def enough(n: int) -> bool:
        freedom = n - 1
        t = float(stdtrit(freedom, confidence))
        # Power of the one-sided t-test, normal approximation to the noncentral t (Abramowitz and Stegun 26.7.10).
        reach = distance * math.sqrt(n) / spread - t * (1 - 1 / (4 * freedom))
        return float(ndtr(reach / math.sqrt(1 + t * t / (2 * freedom)))) >= CHANCE

    return _smallest(enough)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n from MIN_PROMPTS to MAX_PROMPTS with `enough(n)`, which stays true from there on."""
    sizes = range(MIN_PROMPTS, MAX_PROMPTS + 1)
    found = bisect_left(sizes, True, key=enough)
    return sizes[found] if found < len(sizes) else None
