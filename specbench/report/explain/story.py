"""What both explanations of a run need: the draft that counts, and sums that say so where the digits shown do not add
up to the result shown."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts, read_facts
from specbench.analysis.frame import main_trials
from specbench.records import Policy, Trial
from specbench.report import readings, wording
from specbench.store import StoredRun

_ROUNDED = "(the digits shown are rounded)"


@dataclass(frozen=True, slots=True)
class Story:
    """A run as it is explained: by the draft that its verdict is about, at its best gamma, which `row` is. `steps` is
    the cost of a round in target steps and `cost` its parts; None where they are not known."""

    summary: Summary
    facts: Facts
    trials: tuple[Trial, ...]
    draft: DraftResult
    row: GammaResult
    cost: readings.Cost | None
    steps: float | None

    @property
    def policy(self) -> Policy:
        return self.facts.policy

    @property
    def several(self) -> bool:
        return len(self.summary.drafts) > 1

    @property
    def folder(self) -> str:
        """As it is typed in a command."""
        return shlex.quote(text.clean(self.summary.run))


def story(stored: StoredRun, summary: Summary) -> Story:
    """Read a run once for either explanation; `summary` has at least one draft, as that of a stored run always does."""
    facts = read_facts(stored)
    draft = wording.recommended(summary)
    assert draft is not None
    row = wording.best_row(draft)
    cost = readings.cost(draft, facts.policy)
    steps = row.round_steps if cost is None else cost.steps
    return Story(summary, facts, tuple(main_trials(stored)), draft, row, cost, steps)


def verdict(story: Story) -> str:
    """The verdict on the whole run, and how a server was seen."""
    found = wording.choice(story.summary, story.policy)
    if found is None:
        found = wording.verdict(story.draft, story.policy, story.facts.batch_size)
        if story.several:
            found = f"No prompt was measured with every draft, so none is chosen; this is the fastest. {found}"
    outside = wording.from_outside(story.summary.engine, story.facts)
    return f"{found} {outside}".rstrip()


def drafts(story: Story) -> list[str]:
    """One line for each draft where several were compared: its own verdict, at its own best gamma."""
    if not story.several:
        return []
    return [
        f"{text.code(d.draft)} by itself, at gamma {d.best_gamma}: {d.verdict}, "
        f"{text.estimate(d.speedup, d.speedup_low, d.speedup_high)} over "
        f"{text.measured(wording.best_row(d).prompts, story.facts.batch_size)}"
        for d in story.summary.drafts
    ]


def asked(policy: Policy) -> str:
    """What the policy asks for, in one sentence or two."""
    subject = "whole requests, with the reading of the prompt," if policy.metric == "e2e" else "decoding"
    memory = ""
    if policy.max_added_gb is not None:
        memory = f" The draft may take {text.size(policy.max_added_gb * 1e9, 'B')} of memory."
    mix = f" Prompts are {wording.mix_line(policy.mix)}." if policy.mix else ""
    return (
        f"The policy asks for {subject} at least {text.speedup(policy.min_speedup)} as fast, with "
        f"{text.percent(policy.confidence)} confidence, and for at most {text.percent(policy.max_slower_share)} of "
        f"prompts below {text.speedup(policy.slower_than)}.{memory}{mix}"
    )


def reaches(story: Story) -> str:
    """From the row's own speedup of decoding to the number that the verdict rests on; empty where that is the same."""
    row, policy, chosen = story.row, story.policy, story.summary.choice
    steps = []
    if policy.metric == "e2e":
        whole = text.speedup(row.speedup_e2e)
        steps.append(f"The policy is about end to end, which at gamma {row.gamma} is {whole} (measured).")
    among = story.summary.drafts if story.several and chosen is not None else (story.draft,)
    tried = sum(len(draft.gammas) for draft in among)
    if tried > 1:
        rests_on = story.draft.speedup if chosen is None or not story.several else chosen.speedup
        what = "drafts and gammas" if len(among) > 1 else "gammas"
        steps.append(
            f"The verdict rests on {text.speedup(rests_on)}: the best of {tried} {what} looks better than it is, so "
            f"each prompt is taken at the {what} that random halves of the others choose (hold-out)."
        )
    return " ".join(steps)


def apart(story: Story) -> str:
    """Why tokens per round over the cost of a round is not the speedup that was measured, where it is not."""
    row = story.row
    ended = (row.accepted or 0) + (row.rounds or 0) - row.emitted
    if story.policy.mix:
        return "the speedup weighs prompts by the traffic mix, the counts of rounds do not"
    if ended > 0:
        return f"{text.count(ended, 'text')} ended inside a draft, where the target adds no token"
    return "why is not recorded, so do not build on the steps above"


def divide(top: str, bottom: str, result: str) -> str:
    """`1.67 / 1.33 = 1.26`. Where the digits shown give something else than the numbers behind them, which give
    `result`, that stands there as `is about 1.26`, with the reason. Any of them may carry a unit."""
    return _sum(f"{top} / {bottom}", number(top) / number(bottom), result)


def multiply(one: str, other: str, result: str) -> str:
    """`1.32 x 18.8 ms = 24.8 ms`, in the same way."""
    return _sum(f"{one} x {other}", number(one) * number(other), result)


def add(parts: Sequence[str], result: str) -> str:
    """`16.5 ms + 75.3 ms = 91.8 ms`, in the same way."""
    return _sum(" + ".join(parts), math.fsum(number(part) for part in parts), result)


def _sum(words: str, shown: float, result: str) -> str:
    decimals = len(re.sub(r"[^\d.]", "", result).partition(".")[2])
    if f"{shown:.{decimals}f}" == f"{number(result):.{decimals}f}":
        return f"{words} = {result}"
    return f"{words} is about {result} {_ROUNDED}"


def number(shown: str) -> float:
    """`1,755`, `16.5 ms` or `1.15x` as a number."""
    return float(re.sub(r"[^\d.]", "", shown))
