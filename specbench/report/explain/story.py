"""What both explanations of a run need: the draft that counts at its best gamma, and sums that say so where the digits
shown do not add up to the result shown. Their sentences are in run.j2."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.steps import Cost, cost
from specbench.report.dialect import Plain, sentence_of

_ROUNDED = "(the digits shown are rounded)"


@dataclass(frozen=True, slots=True)
class Story:
    """A run as it is explained: by the draft that its verdict is about, at its best gamma, which `row` is. `steps` is
    the cost of a round in target steps and `cost` its parts; None where they are not known."""

    s: Summary
    draft: DraftResult
    row: GammaResult
    cost: Cost | None
    steps: float | None

    @property
    def folder(self) -> str:
        """As it is typed in a command."""
        return shlex.quote(text.clean(self.s.run))

    @property
    def ended(self) -> int:
        return (self.row.accepted or 0) + (self.row.rounds or 0) - self.row.emitted

    @property
    def quotient(self) -> float:
        return (self.row.tokens_per_round or 0.0) / (self.steps or 1.0)

    @property
    def rounds_off(self) -> bool:
        """Whether the quotient of the digits shown is not the one shown."""
        shown = round(self.row.tokens_per_round or 0.0, 2) / round(self.steps or 1.0, 2)
        return f"{shown:.2f}" != f"{self.quotient:.2f}"


def story(summary: Summary) -> Story:
    """Of a Summary with at least one draft, as that of a stored run always has."""
    draft = summary.recommended
    assert draft is not None
    found = cost(draft, summary.policy)
    return Story(summary, draft, draft.best, found, draft.best.round_steps if found is None else found.steps)


def gain(told: Story, d: Plain) -> str:
    """Why it is so: guesses, tokens per round, the time of a round, and what these make together."""
    return sentence_of("gain", d, told)


def chain(told: Story, d: Plain) -> list[str]:
    """From guesses to a speedup, every step with its sum."""
    sums = {"shown": Shown, "ms": ms, "divide": divide, "multiply": multiply, "add": add}
    parts = ("guesses", "yielded", "round_cost", "from_rounds", "reaches")
    found = [sentence_of(part, d, told, **({} if part == "reaches" else sums)) for part in parts]
    return [line for line in found if line]


@dataclass(frozen=True, slots=True)
class Shown:
    """A number as it is shown: rounded to `digits`, with a unit behind."""

    value: float
    digits: int = 0
    unit: str = ""

    @property
    def rounded(self) -> float:
        return round(self.value, self.digits)

    def __str__(self) -> str:
        return f"{self.value:,.{self.digits}f}{self.unit}"


def ms(seconds: float) -> Shown:
    """As text.milliseconds has it."""
    value = seconds * 1000
    return Shown(value, 2 if value < 1 else 1 if value < 100 else 0, " ms")


def divide(top: Shown, bottom: Shown, result: Shown, what: str = "") -> str:
    """`1.67 / 1.33 = 1.26`. Where the digits shown give something else than the numbers behind them, the result stands
    there as `is about 1.26`, with the reason."""
    return _sum(f"{top} / {bottom}", top.rounded / bottom.rounded, result, what)


def multiply(one: Shown, other: Shown, result: Shown) -> str:
    """`1.32 x 18.8 ms = 24.8 ms`, in the same way."""
    return _sum(f"{one} x {other}", one.rounded * other.rounded, result)


def add(parts: Sequence[Shown], result: Shown, what: str = "") -> str:
    """`16.5 ms + 75.3 ms = 91.8 ms`, in the same way."""
    return _sum(" + ".join(map(str, parts)), math.fsum(part.rounded for part in parts), result, what)


def _sum(words: str, shown: float, result: Shown, what: str = "") -> str:
    behind = f"{result}{' ' + what if what else ''}"
    if f"{shown:.{result.digits}f}" == f"{result.value:.{result.digits}f}":
        return f"{words} = {behind}"
    return f"{words} is about {behind} {_ROUNDED}"
