"""How far to believe a run: whether the text is the same, how still the machine was, and what to distrust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from specbench.acceptance.lossless import NEAR_TIE
from specbench.records import Caution, Policy, Trial
from specbench.report import text
from specbench.report.contract import CategoryResult, DraftResult, Summary
from specbench.report.facts import Facts, differing
from specbench.report.steps import limited_command
from specbench.report.wording import best_row, by_speedup

Kind = Literal["measured", "predicted", "assumed"]

# With more of the answers cut than this, the run says little about how long answers go on.
_MANY_CUT = 0.5

# Fewer slow prompts than this are not worth a line, and an interval that ends nearer than this is a close call.
_MENTIONED = 0.05
_CLOSE = 0.05

# Said by the banner on top of the brief.
_SAID_ABOVE = {"unfinished-run"}


@dataclass(frozen=True, slots=True)
class Doubt:
    """A claim not to take at face value: what sort of number it is, and what would change it."""

    kind: Kind
    claim: str
    change: str


def losslessness(draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> str:
    """Is the text what the target alone would write: counted under greedy, argued when sampling."""
    if not facts.sampling.greedy:
        return (
            f"Not checked in this run: at temperature {facts.sampling.temperature:g} two runs draw different tokens, "
            "and texts cannot be compared token for token. That the output keeps the target's distribution rests on "
            "the rejection rule (assumed here; specbench's tests prove it by enumerating short sequences)."
        )
    row = best_row(draft)
    if row.identical_prompts is None:
        return "Not checked: no text was compared with the target's own."
    same = (
        f"At gamma {row.gamma}, {row.identical_prompts:,} of {row.prompts:,} prompts give the target's own text, token "
        "for token (measured)."
    )
    again = len(differing(trials, None))
    unsteady = f"The target alone does not repeat its own text on {text.count(again, 'prompt')}." if again else ""
    return " ".join(part for part in (same, _margins(differing(trials, draft.draft), facts, draft), unsteady) if part)


def _margins(margins: list[float | None], facts: Facts, draft: DraftResult) -> str:
    """What the texts that differ say: rounding, or a bug."""
    if not margins:
        return ""
    over = "" if len(draft.gammas) == 1 else f" over all {len(draft.gammas)} gammas"
    head = f"{text.count(len(margins), 'text')}{over} {'differs' if len(margins) == 1 else 'differ'}:"
    limit = NEAR_TIE.get(facts.precision or "", 0.0)
    known = [margin for margin in margins if margin is not None]
    wide = [margin for margin in known if margin > limit]
    parts = []
    if len(wide) < len(known):
        near_ties = _of(len(known) - len(wide), len(margins))
        parts.append(f"{near_ties}where the target's two best tokens nearly tie, which rounding can flip")
    if wide:
        worst = text.percent(max(wide))
        parts.append(
            f"{_of(len(wide), len(margins))}at a wide margin, up to {worst} of the top logit, **so suspect a bug**"
        )
    if len(known) < len(margins):
        parts.append(f"{_of(len(margins) - len(known), len(margins))}without a recorded margin")
    near = f"Nearly means within {100 * limit:.3g}% of the top logit in {facts.precision} (assumed)."
    if facts.precision == "float32":
        near += " In float32 such ties are rare: suspect a bug until each has been looked at."
    return f"{head} {'; '.join(parts)}. {near}"


def _of(part: int, whole: int) -> str:
    return "" if whole == 1 else "all of them " if part == whole else f"{part:,} "


def noise(summary: Summary) -> str:
    """The A/A arm: how far two measurements of the same thing lie apart here, and which speedups are no further."""
    if summary.noise_floor is None:
        return "Unknown: the target alone was not measured twice, or over too few prompts to say."
    floor = summary.noise_floor
    words = [f"The target alone, measured a second time, agrees with itself within {floor:.1%} (measured, A/A)."]
    words += [
        f"The {text.speedup(draft.speedup)} of {text.code(draft.draft)} is no further from 1.00x: perhaps noise."
        for draft in summary.drafts
        if abs(draft.speedup - 1) <= floor
    ]
    return " ".join(words)


def doubts(summary: Summary, facts: Facts) -> list[Doubt]:
    """Every claim of the brief that is predicted, assumed or rests on little; the run's own warnings are apart."""
    found = list(_run(summary, facts))
    for draft in summary.drafts:
        name = f" ({text.code(draft.draft)})" if len(summary.drafts) > 1 else ""
        found += _draft(draft, facts.policy, name)
    if summary.drafts:
        found.append(
            Doubt(
                "predicted",
                "What a cheaper draft, a faster verify or another gamma would give: all else is held as measured here.",
                "measuring it.",
            )
        )
    return found


def _run(summary: Summary, facts: Facts) -> Iterator[Doubt]:
    work = facts.workload
    if work.used is not None and work.available is not None and work.used < work.available:
        command = limited_command(facts, work.available)
        rest = f"measuring the other {work.available - work.used:,}"
        yield Doubt(
            "measured",
            f"The sample is {work.used:,} of the {work.available:,} prompts in the workload.",
            f"{rest}: {text.code(command)}" if command else f"{rest}.",
        )
    if facts.cut_share is not None and facts.cut_share > _MANY_CUT and facts.max_new_tokens:
        yield Doubt(
            "assumed",
            f"Answers go on as they begin: {text.percent(facts.cut_share)} of the target's were cut at "
            f"{facts.max_new_tokens:,} tokens.",
            "a larger `--max-new-tokens`.",
        )
    if summary.noise_floor is None:
        yield Doubt(
            "assumed",
            "The machine was steady: there is no noise floor to show it.",
            "the target alone measured twice over more prompts.",
        )
    few = {c.category: c.prompts for draft in summary.drafts for c in by_speedup(draft) if c.speedup_low is None}
    if few:
        listed = text.join(f"{text.escape(name)} ({prompts:,})" for name, prompts in few.items())
        yield Doubt("measured", f"Too few prompts for an interval: {listed}.", "more prompts of that kind.")


def _draft(draft: DraftResult, policy: Policy, name: str) -> Iterator[Doubt]:
    categories = by_speedup(draft)
    close = [category for category in categories if category.verdict != "UNCLEAR" and _close(category, policy)]
    if close:
        listed = text.join(f"{text.escape(c.category)} {text.interval(c.speedup_low, c.speedup_high)}" for c in close)
        yield Doubt(
            "measured",
            f"Decided, but with an interval that ends near {text.speedup(policy.min_speedup)}{name}: {listed}.",
            "a few more prompts.",
        )
    row = best_row(draft)
    if row.slower_share >= _MENTIONED:
        yield Doubt(
            "measured",
            f"The speedup is an average{name}: at gamma {row.gamma}, {text.percent(row.slower_share)} of prompts ran "
            f"below {text.speedup(policy.slower_than)}.",
            "leaving those out, if they share a category.",
        )


def _close(category: CategoryResult, policy: Policy) -> bool:
    end = category.speedup_low if category.verdict == "GO" else category.speedup_high
    return end is not None and abs(end - policy.min_speedup) < _CLOSE


def cautions(warnings: Sequence[Caution]) -> list[str]:
    """The run's own warnings, with their cures."""
    return [
        f"{text.code(w.code)}: {text.escape(text.sentence(w.message))} {text.escape(text.sentence(w.cure))}"
        for w in warnings
        if w.code not in _SAID_ABOVE
    ]
