"""An engine that answers at once, so that what is left of a trial is everything around the models."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.fake_folder import TOKENS, walked
from specbench.acceptance.scores import Scores
from specbench.records import Arm, Finish, Round, Times


@dataclass(frozen=True, slots=True)
class FakeGeneration:
    """As the loop's own, which would load torch."""

    tokens: list[int]
    rounds: list[Round]
    finish: Finish
    times: Times


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial that is done when it starts."""

    found: list[FakeGeneration]

    def finish(self) -> list[FakeGeneration]:
        return self.found


class FakeEngine:
    """One text for every prompt, with the rounds that seven of ten accepted drafts give."""

    device = "cpu"

    def __init__(self) -> None:
        rng = random.Random(0)
        self._accepts = [rng.random() < 0.7 for _ in range(TOKENS - 1)]
        self._tokens = list(range(TOKENS))
        self._made: dict[int | None, FakeGeneration] = {}
        accept, some = np.array(self._accepts, np.float32), np.full(TOKENS - 1, 0.5, np.float32)
        self._scores = Scores(accept, accept, some, some, -some, np.zeros(TOKENS - 1, bool))

    def start(self, prompts: Sequence[Sequence[int]], arm: Arm, **_: Any) -> Finished:
        """The same as the time before: made once for each gamma."""
        if arm.gamma not in self._made:
            rounds = (
                []
                if arm.gamma is None
                else [Round(*one) for one in zip(*walked(self._accepts, arm.gamma), strict=True)]
            )
            times = Times(0.02, 0.0, 0.0, 1.0, 0.1, 1.12)
            self._made[arm.gamma] = FakeGeneration(self._tokens, rounds, "length", times)
        return Finished([self._made[arm.gamma]])

    def score(self, ids: Sequence[int], tokens: Sequence[int], draft: str) -> Scores:
        """The same for every text."""
        return self._scores

    def warm(self, ids: Sequence[int], widths: Iterable[int]) -> None:
        """Nothing to warm."""
