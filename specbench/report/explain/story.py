"""What both explanations of a run need: the draft that counts at its best gamma, and sums that say so where the digits
shown do not add up to the result shown."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.steps import Cost, cost
from specbench.report.dialect import PLAIN, Plain, sentence_of, upper_first

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
    def among(self) -> int:
        """Drafts among which the verdict's was chosen."""
        return len(self.s.drafts) if self.s.choice is not None else 1

    @property
    def tried(self) -> int:
        """Rows among which the verdict's was chosen."""
        drafts = self.s.drafts if self.among > 1 else (self.draft,)
        return sum(len(draft.gammas) for draft in drafts)

    @property
    def ended(self) -> int:
        """Texts that ended inside a draft, where the target adds no token."""
        return (self.row.accepted or 0) + (self.row.rounds or 0) - self.row.emitted

    @property
    def quotient(self) -> float:
        """Tokens per round over the cost of a round."""
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
    found = (_guesses(told), _yield(told), _cost(told), *_speedup(told), sentence_of("reaches", d, told))
    return [line for line in found if line]


def _guesses(told: Story) -> str:
    row = told.row
    if row.drafted is None or row.accepted is None:
        return "How many tokens were drafted and accepted is not known: the server does not tell."
    rounds = "" if row.rounds is None else f"In {text.count(row.rounds, 'round')} "
    if not row.drafted:
        return f"{rounds}the draft proposed nothing at all, so the target worked alone."
    over = f", over {text.percent(row.counted_share)} of the texts, those of which the server tells"
    line = (
        f"{rounds}the draft guessed {row.drafted:,} tokens and the target accepted {row.accepted:,}: the acceptance "
        f"rate r is {row.accepted:,} / {row.drafted:,} = {text.percent(row.acceptance_rate)} (measured"
        f"{over if row.counted_share < 1 else ''}). Guesses behind a wrong one count as drafted, though nobody judged "
        "them."
    )
    broken = " Not a single one: that points to a broken set-up and not to a poor draft." if not row.accepted else ""
    return f"{upper_first(line)}{broken}"


def _yield(told: Story) -> str:
    row = told.row
    if row.tokens_per_round is None or row.accepted is None or row.rounds is None:
        why = "the server does not tell its rounds" if told.s.facts.served else "no round was run"
        return f"How many tokens a round yields is not known: {why}. So the speedup cannot be taken apart here."
    kept, tau = Shown(row.accepted / row.rounds, 2), Shown(row.tokens_per_round, 2)
    guesses = divide(Shown(row.accepted), Shown(row.rounds), kept, "guesses on average")
    return (
        f"A round keeps {guesses}, and the target adds one token itself: "
        f"{add([Shown(1), kept], tau, 'tokens per round')}. This is tau (measured)."
    )


def _cost(told: Story) -> str:
    row, found = told.row, told.cost
    round_s = row.round_s if found is None else found.round_s
    if row.tokens_per_round is None or round_s is None or told.steps is None:
        return ""
    whole, step = ms(round_s), ms(1 / told.draft.baseline_tokens_per_s)
    if found is None:
        token = ms(round_s / row.tokens_per_round)
        made = multiply(Shown(row.tokens_per_round, 2), token, whole)
        head, marks = f"With the draft a token takes {token}, which makes for a round: {made}", "measured, from outside"
    else:
        parts = [ms(part) for part in (found.times.draft_s, found.times.verify_s, found.times.other_s)]
        head, marks = f"Drafting, verifying and the host gap make up a round: {add(parts, whole)}", "measured"
    cost_words = divide(whole, step, Shown(told.steps, 2), "target steps")
    return f"{head}. A target step takes {step}. The round's cost ({marks}): {cost_words}."


def _speedup(told: Story) -> list[str]:
    """The quotient beside the clock, and what its agreement is worth."""
    row = told.row
    clock = text.estimate(row.speedup, row.speedup_low, row.speedup_high)
    if row.tokens_per_round is None or not told.steps:
        return [f"The clock says {clock} for decoding at gamma {row.gamma} (measured)."]
    quotient = divide(Shown(row.tokens_per_round, 2), Shown(told.steps, 2), Shown(told.quotient, 2, "x"))
    line = f"Tokens per round over the round's cost: {quotient}. The clock says {clock} for decoding (measured)."
    if f"{told.quotient:.2f}" != f"{row.speedup:.2f}":
        return [f"{line} They differ: {sentence_of('why_apart', PLAIN, told)}."]
    return [
        f"{line} Both come from the same trials, so they agree by construction: this shows where the speedup comes "
        "from, and is no second measurement of it."
    ]


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
