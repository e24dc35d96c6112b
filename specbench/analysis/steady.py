"""How steady the machine was: the target alone against itself (A/A), over all prompts and category by category."""

from __future__ import annotations

from collections.abc import Mapping

from specbench.analysis.frame import ArmRows
from specbench.analysis.views import a_a, arm_of
from specbench.decision.interval import excess_variance, speedup_interval
from specbench.records import Arm, Policy


class Steady:
    """What the A/A arm shows under a policy's metric and mix."""

    def __init__(self, arms: Mapping[Arm, ArmRows], policy: Policy) -> None:
        self._arms, self._policy = arms, policy
        names = sorted(set(arm_of(arms, "baseline").category))
        whole = a_a(arms, policy.metric, policy.mix)
        self.excess = 0.0 if whole is None else excess_variance(whole)
        self._again = {name: a_a(arms, policy.metric, category=name) for name in names}

    def excess_of(self, category: str) -> float:
        """Variance of a category's log speedup beyond the scatter of its prompts. A machine may be slow for some
        minutes, which fall on few categories and hardly show over all; never less than over all."""
        again = self._again.get(category)
        return self.excess if again is None else max(self.excess, excess_variance(again))

    def baseline_ratio(self, category: str) -> float | None:
        """The target alone over itself, where the two differ by more than the scatter of prompts explains; else
        None."""
        again = self._again.get(category)
        if again is None:
            return None
        # Of many categories one differs by chance: all together are to be called steady as surely as one would be.
        found = speedup_interval(again, 1 - (1 - self._policy.confidence) / len(self._again))
        if found.low is None or found.high is None or found.low <= 1.0 <= found.high:
            return None
        return found.value
