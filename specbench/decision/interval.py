"""Ratios of totals with an interval over prompts.

The prompt is the unit: tokens within a prompt are not independent, and both arms saw the same prompts, so prompts
are resampled whole and in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specbench.records import Interval

Floats = NDArray[np.float64]

MIN_PROMPTS = 10
RESAMPLES = 2000
# Resample counts worked on at a time: 8 MB, whatever the number of prompts.
PART = 1_000_000
# Up to this many are kept for the next question over as many prompts: 16 MB, or 20 MB of a byte each.
KEPT, PACKED = 2_000_000, 20_000_000
# Degrees of freedom.
MANY = 200
# What the square of one observation is taken for, of a variance that nobody knows.
ONE_PAIR = 4.0
# The least that a few long prompts count for, in prompts.
LEAST_EFFECTIVE = 1.5
# A smaller standard error of a log ratio than this is rounding.
_NO_SPREAD = 1e-7
# Where one prompt in ten outweighs all others, some resamples are further off than a number can be.
_LARGEST_LOG = 700.0


@dataclass(frozen=True, slots=True)
class Paired:
    """Seconds and tokens of two arms, each [n], position i being the same prompt in both."""

    base_s: Floats
    base_tokens: Floats
    spec_s: Floats
    spec_tokens: Floats

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Paired:
        """The prompts of a mask [n], or of row numbers in their order."""
        return Paired(self.base_s[rows], self.base_tokens[rows], self.spec_s[rows], self.spec_tokens[rows])

    @property
    def n(self) -> int:
        return len(self.base_s)

    @property
    def speedup(self) -> float:
        """Seconds per token of the first arm over seconds per token of the second, totals over totals."""
        base, spec = self.base_s.sum() / self.base_tokens.sum(), self.spec_s.sum() / self.spec_tokens.sum()
        return float(base / spec)

    @property
    def decoded(self) -> bool:
        """Whether both arms have seconds and tokens at all, without which there is no speedup."""
        return all(column.sum() > 0 for column in (self.base_s, self.base_tokens, self.spec_s, self.spec_tokens))

    @property
    def by_prompt(self) -> Floats:
        """Each prompt's own speedup, for prompts in which both arms decoded anything [at most n]."""
        some = (self.base_tokens > 0) & (self.spec_tokens > 0)
        base, spec = self.base_s[some] / self.base_tokens[some], self.spec_s[some] / self.spec_tokens[some]
        return np.asarray(base / spec, dtype=np.float64)


def speedup_interval(paired: Paired, confidence: float, excess: float = 0.0) -> Interval:
    """Speedup of the second arm over the first; no interval below MIN_PROMPTS prompts.

    `excess` is a variance of the log of the speedup that the scatter over prompts does not show, such as what
    `excess_variance` finds between two arms that do the same. It widens the interval and leaves the value alone.
    """
    above, below = _speedup_columns(paired)
    draws = _log_ratio_draws(above, below, excess)
    return _interval(paired.speedup, None if draws is None else np.exp(draws), confidence, paired.n)


def ends(name: str, found: Interval | None) -> dict[str, Any]:
    """The arguments `name`, `name_low` and `name_high` of a record; None without an interval."""
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def speedup_bar(paired: Paired, confidence: float) -> Interval:
    """The same by the delta method and Student's t, without resampling: for a display that is drawn again and again.
    None under the same conditions."""
    above, below = _speedup_columns(paired)
    if not _enough(above, below):
        return Interval(paired.speedup, None, None, confidence, paired.n)
    value, error = _estimate(above, below)
    width = reach(paired.n - 1, confidence) * error
    return Interval(math.exp(value), math.exp(value - width), math.exp(value + width), confidence, paired.n)


def excess_variance(again: Paired) -> float:
    """Variance that arms have beyond what the scatter over prompts explains, from two that do the same: ONE_PAIR times
    the squared log of their ratio, less its squared standard error, and at least 0.

    Both arms of that pair carry an error of their own, as both arms of a speedup do. It is one observation of that
    error, small by luck about as often as it is large: hence the factor, with which intervals hold the truth as often
    as they say (docs/calibration.md). 0.0 where there would be no interval to widen.
    """
    above, below = _speedup_columns(again)
    if not _enough(above, below):
        return 0.0
    value, error = _estimate(above, below)
    return ONE_PAIR * max(0.0, value**2 - error**2)


# A ratio whose whole interval is this near 1 is that of two things that are the same for all that anyone decides.
EQUIVALENT = 0.05

Difference = Literal["faster", "slower", "same", "not resolved"]


def difference(low: float | None, high: float | None) -> Difference:
    """What the interval of a ratio of speeds says: an interval that holds 1 proves nothing equal, unless it is narrow
    (two one-sided tests, Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680)."""
    if low is None or high is None:
        return "not resolved"
    if low > 1 or high < 1:
        return "faster" if low > 1 else "slower"
    return "same" if low >= 1 / (1 + EQUIVALENT) and high <= 1 + EQUIVALENT else "not resolved"


def totals_interval(above: Sequence[Floats], below: Sequence[Floats], confidence: float, excess: float) -> Interval:
    """The product of the totals of the columns `above`, each [n] over the same prompts, over that of those `below`: a
    ratio of two speedups, say. `excess` as for a speedup, of everything that went in."""
    draws = _log_ratio_draws(tuple(above), tuple(below), excess)
    value = math.prod(float(c.sum()) for c in above) / math.prod(float(c.sum()) for c in below)
    return _interval(value, None if draws is None else np.exp(draws), confidence, len(above[0]))


def share_interval(part: Floats, rest: Floats, confidence: float) -> Interval:
    """sum(part) / (sum(part) + sum(rest)) over prompts, such as alpha from accepted and rejected counts [n]."""
    draws = _log_ratio_draws((part,), (rest,))  # the log of part : rest is the logit of the share
    value = float(part.sum() / (part.sum() + rest.sum()))
    return _interval(value, None if draws is None else 1 / (1 + np.exp(-draws)), confidence, len(part))


def share_bar(part: Floats, rest: Floats, confidence: float) -> Interval:
    """The same by the delta method on the logit and Student's t, without resampling and so without draws: a bar of a
    figure, of which there are many. None under the same conditions."""
    n, total = len(part), float(part.sum() + rest.sum())
    value = float(part.sum()) / total if total else 0.0
    if not _enough((part,), (rest,)):
        return Interval(value, None, None, confidence, n)
    logit, error = _estimate((part,), (rest,))
    width = reach(n - 1, confidence) * error
    low, high = (1 / (1 + math.exp(-(logit + way * width))) for way in (-1, 1))
    return Interval(value, low, high, confidence, n)


def reach(freedom: int, confidence: float) -> float:
    """Half the width of Student's t with so many degrees of freedom; from MANY on that of a normal, which is within 1 %
    of it, and does not take loading a library that takes longer than all bars together."""
    if freedom >= MANY:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _interval(value: float, draws: Floats | None, confidence: float, n: int) -> Interval:
    if draws is None:
        return Interval(value, None, None, confidence, n)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), confidence, n, tuple(draws.tolist()))


def _speedup_columns(paired: Paired) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """The totals above and below the line."""
    return (paired.base_s, paired.spec_tokens), (paired.base_tokens, paired.spec_s)


def _log_ratio_draws(above: tuple[Floats, ...], below: tuple[Floats, ...], excess: float = 0.0) -> Floats | None:
    """Where the log of (product of totals `above`) / (product of totals `below`) may lie, as draws on both sides of the
    estimate, two for each resample.

    Symmetric studentised bootstrap (Hall 1988, Annals of Statistics 16, 927-953): each resample's distance from the
    estimate is measured in its own standard error, then laid off from the estimate in the estimate's, to both sides.
    Using both sides makes the error of the coverage smaller by a power of n than laying off one (Efron and Tibshirani
    1993, chapter 12.5), which with 12 prompts of uneven length misses the truth in 7 % of cases; BCa misses in 12 %
    (docs/calibration.md). A few long prompts scatter as their effective number does and not as n, which the resamples,
    drawn from the same few, do not show: the distances are laid off in a standard error for that number. None with
    fewer than MIN_PROMPTS prompts or where a total is zero.
    """
    if not _enough(above, below):
        return None
    estimate, error = _estimate(above, below)
    distances = np.zeros(RESAMPLES if excess else 1)
    if error > _NO_SPREAD:
        parts = [_log_ratio(above, below, weights) for weights in _resamples(len(above[0]))]
        resampled, errors = (np.concatenate(column) for column in zip(*parts, strict=True))
        # A resample without spread (or in which a total vanished) has no distance to measure.
        usable = np.isfinite(resampled) & (errors > _NO_SPREAD)
        if usable.any():
            distances = (resampled[usable] - estimate) / errors[usable] * error * _uneven(above, below)
    if excess:
        distances = distances + np.random.default_rng(1).normal(0, np.sqrt(excess), len(distances))
    return np.clip(np.concatenate((estimate - distances, estimate + distances)), -_LARGEST_LOG, _LARGEST_LOG)


def _uneven(above: tuple[Floats, ...], below: tuple[Floats, ...]) -> float:
    """How much larger the standard error is where n / (n - 1) in it is that of the effective number (Kish 1965):
    sqrt(m / (m - 1) * (n - 1) / n), m = (sum of shares)^2 / sum of squared shares of the totals."""
    share = np.sum([column / column.sum() for column in (*above, *below)], axis=0)
    n, effective = len(share), max(LEAST_EFFECTIVE, float(share.sum() ** 2 / (share**2).sum()))
    return math.sqrt(effective / (effective - 1) * (n - 1) / n)


def _enough(above: tuple[Floats, ...], below: tuple[Floats, ...]) -> bool:
    return len(above[0]) >= MIN_PROMPTS and all(column.sum() > 0 for column in (*above, *below))


def _estimate(above: tuple[Floats, ...], below: tuple[Floats, ...]) -> tuple[float, float]:
    """The log ratio and its standard error."""
    value, error = _log_ratio(above, below, np.ones((1, len(above[0]))))
    return float(value[0]), float(error[0])


def _log_ratio(above: tuple[Floats, ...], below: tuple[Floats, ...], weights: Floats) -> tuple[Floats, Floats]:
    """Log ratio and its standard error (delta method) under each row of `weights` [resamples, n].

    A prompt's influence on the log ratio is the sum of its signed shares in the totals, so the sum of the influences'
    squares needs no more than the totals of the columns' products: one matrix product for all resamples.
    """
    n = weights.shape[1]
    signs = np.array([1.0] * len(above) + [-1.0] * len(below))
    columns = np.stack([column / column.sum() for column in (*above, *below)], axis=1)  # [n, columns]
    first, second = np.triu_indices(len(signs))
    sums = weights @ np.hstack((columns, columns[:, first] * columns[:, second]))
    totals, products = sums[:, : len(signs)], sums[:, len(signs) :]
    twice = np.where(first == second, 1.0, 2.0) * signs[first] * signs[second]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = math.log(math.prod(float(c.sum()) for c in above) / math.prod(float(c.sum()) for c in below))
        value = scale + np.log(totals) @ signs
        squares = (products / (totals[:, first] * totals[:, second])) @ twice
        error = np.sqrt(n / (n - 1) * np.maximum(squares, 0.0))
    return value, error


def _resamples(n: int) -> Iterator[Floats]:
    """How often each of `n` prompts is drawn in each resample, in parts [some, n] of bounded size, RESAMPLES rows in
    all; the same for every question."""
    if n * RESAMPLES <= KEPT:
        yield from _kept_resamples(n)
    else:
        for part in _packed_resamples(n) if n * RESAMPLES <= PACKED else _drawn(n):
            yield part.astype(np.float64)


@lru_cache(maxsize=8)
def _kept_resamples(n: int) -> tuple[Floats, ...]:
    return tuple(part.astype(np.float64) for part in _drawn(n))


@lru_cache(maxsize=8)
def _packed_resamples(n: int) -> tuple[NDArray[np.uint8], ...]:
    """A prompt is drawn once on average, and 256 times never."""
    return tuple(part.astype(np.uint8) for part in _drawn(n))


def _drawn(n: int) -> Iterator[NDArray[np.int64]]:
    rng, rows = np.random.default_rng(0), max(1, PART // n)
    for begin in range(0, RESAMPLES, rows):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(rows, RESAMPLES - begin))


SPLITS = 400


@dataclass(frozen=True, slots=True)
class Choice:
    """`best` is the gamma to run with, chosen on all prompts; `paired` is what the choice can be expected to give:
    each prompt at the gammas that random halves of the *other* prompts chose. Half of the prompts choose less well than
    all, so that errs low: `excess` is the square of how far, in the log of the speedup, below what `best` has on all
    prompts, which errs high."""

    best: int
    paired: Paired
    excess: float = 0.0


def choose_gamma(by_gamma: Mapping[int, Paired]) -> Choice:
    """Cross-fitted over random halves: choose on one half, report on the other, averaged over SPLITS splits.

    Halves and not leave-one-out: where two gammas nearly tie, leaving out one prompt tips the choice against that very
    prompt, every time. The prompts must be the same, in the same order, at every gamma.
    """
    gammas = sorted(by_gamma)
    spec_s = np.stack([by_gamma[g].spec_s for g in gammas])  # [gammas, n]
    spec_tokens = np.stack([by_gamma[g].spec_tokens for g in gammas])
    spent_s, tokens = spec_s.sum(1), spec_tokens.sum(1)
    best = gammas[int(np.argmin(np.divide(spent_s, tokens, out=np.full(len(gammas), np.inf), where=tokens > 0)))]
    first = by_gamma[gammas[0]]
    if len(gammas) == 1 or first.n < 2:
        return Choice(best, by_gamma[best])
    choosing = _halves(first.n)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (spec_s @ choosing.T) / (spec_tokens @ choosing.T)  # seconds per token [gammas, splits]
    chosen = np.argmin(np.nan_to_num(rate, nan=np.inf), axis=0) == np.arange(len(gammas))[:, None]  # [gammas, splits]
    reported = ~choosing
    share = (chosen @ reported.astype(float)) / reported.sum(0)  # [gammas, n]: how often each was reported at each
    paired = Paired(first.base_s, first.base_tokens, (share * spec_s).sum(0), (share * spec_tokens).sum(0))
    apart = math.log(by_gamma[best].speedup / paired.speedup) if by_gamma[best].decoded and paired.decoded else 0.0
    return Choice(best, paired, apart**2)


@lru_cache(maxsize=2)  # categories are often of one size, and the whole is asked for twice
def _halves(n: int) -> NDArray[np.bool_]:
    """Which of `n` prompts choose, in each split [splits, n]."""
    return np.argsort(np.random.default_rng(0).random((SPLITS, n)), axis=1) < n // 2
