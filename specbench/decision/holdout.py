"""Choosing gamma without flattering it: no prompt helps to choose the gamma at which it is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specbench.decision.interval import Paired

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
    best = gammas[int(np.argmin(spec_s.sum(1) / spec_tokens.sum(1)))]
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
