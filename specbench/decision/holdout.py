"""Choosing gamma without flattering it: no prompt helps to choose the gamma at which it is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specbench.decision.interval import Paired


@dataclass(frozen=True, slots=True)
class Choice:
    """`best` is the gamma to run with, chosen on all prompts; `paired` is what the choice can be expected to give:
    each prompt at the gamma that the *other* prompts would have chosen."""

    best: int
    paired: Paired


def choose_gamma(by_gamma: Mapping[int, Paired]) -> Choice:
    """Leave-one-out over the prompts, which must be the same, in the same order, at every gamma."""
    gammas = sorted(by_gamma)
    spec_s = np.stack([by_gamma[g].spec_s for g in gammas])  # [gammas, n]
    spec_tokens = np.stack([by_gamma[g].spec_tokens for g in gammas])
    best = gammas[int(np.argmin(spec_s.sum(1) / spec_tokens.sum(1)))]
    first = by_gamma[gammas[0]]
    if len(gammas) == 1 or first.n < 2:
        return Choice(best, by_gamma[best])
    others_s = spec_s.sum(1, keepdims=True) - spec_s
    others_tokens = spec_tokens.sum(1, keepdims=True) - spec_tokens
    chosen = np.argmin(others_s / others_tokens, axis=0)  # [n]
    prompts = np.arange(first.n)
    paired = Paired(first.base_s, first.base_tokens, spec_s[chosen, prompts], spec_tokens[chosen, prompts])
    return Choice(best, paired)
