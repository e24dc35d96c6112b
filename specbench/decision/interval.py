"""Ratios of totals with an interval over prompts.

The prompt is the unit: tokens within a prompt are not independent, and both arms saw the same prompts, so prompts
are resampled whole and in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.records import Interval

Floats = NDArray[np.float64]

MIN_PROMPTS = 10
RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Paired:
    """Seconds and tokens of two arms, each [n], position i being the same prompt in both."""

    base_s: Floats
    base_tokens: Floats
    spec_s: Floats
    spec_tokens: Floats

    def take(self, rows: NDArray[np.bool_]) -> Paired:
        """The prompts that `rows` [n] selects."""
        return Paired(self.base_s[rows], self.base_tokens[rows], self.spec_s[rows], self.spec_tokens[rows])

    @property
    def n(self) -> int:
        return len(self.base_s)

    @property
    def speedup(self) -> float:
        """Seconds per token of the first arm over seconds per token of the second, totals over totals."""
        return float(_ratio(self.base_s, self.base_tokens, self.spec_s, self.spec_tokens))

    @property
    def by_prompt(self) -> Floats:
        """Each prompt's own speedup, for prompts in which both arms decoded anything [at most n]."""
        some = (self.base_tokens > 0) & (self.spec_tokens > 0)
        base, spec = self.base_s[some] / self.base_tokens[some], self.spec_s[some] / self.spec_tokens[some]
        return np.asarray(base / spec, dtype=np.float64)


def speedup_interval(paired: Paired, confidence: float) -> Interval:
    """Speedup of the second arm over the first; no interval below MIN_PROMPTS prompts."""
    arrays = (paired.base_s, paired.base_tokens, paired.spec_s, paired.spec_tokens)
    return _interval(arrays, _ratio, confidence)


def share_interval(part: Floats, rest: Floats, confidence: float) -> Interval:
    """sum(part) / (sum(part) + sum(rest)) over prompts, such as alpha from accepted and rejected counts [n]."""
    return _interval((part, rest), _share, confidence)


def _interval(arrays: tuple[Floats, ...], statistic: Any, confidence: float) -> Interval:
    n = len(arrays[0])
    value = float(statistic(*arrays))
    if n < MIN_PROMPTS:
        return Interval(value, None, None, confidence, n)
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):
        result = stats.bootstrap(
            arrays,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(0),
        )
    draws = np.asarray(result.bootstrap_distribution, dtype=float)
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if not np.isfinite([low, high]).all():
        # Prompts that all agree to the last digit leave BCa nothing to correct.
        low, high = (float(x) for x in np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]))
    return Interval(value, low, high, confidence, n, tuple(draws.tolist()))


def _ratio(base_s: Floats, base_tokens: Floats, spec_s: Floats, spec_tokens: Floats, axis: int = -1) -> Any:
    base = base_s.sum(axis=axis) / base_tokens.sum(axis=axis)
    return base / (spec_s.sum(axis=axis) / spec_tokens.sum(axis=axis))


def _share(part: Floats, rest: Floats, axis: int = -1) -> Any:
    total = part.sum(axis=axis)
    return total / (total + rest.sum(axis=axis))
