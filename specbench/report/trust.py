"""How far to believe a run: whether the text is the same, how still the machine was, and what to distrust."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from specbench.acceptance.lossless import NEAR_TIE, NEAR_TIE_NATS, explained, near_tie_limit
from specbench.records import Caution, Divergence, Policy, Trial
from specbench.report import text
from specbench.report.contract import CategoryResult, DraftResult, Summary
from specbench.report.facts import Facts, differing
from specbench.report.steps import limited_command
from specbench.report.wording import best_row, by_speedup

Kind = Literal["measured", "predicted", "assumed", "not known"]

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
            + (
                "the server's rejection rule (assumed)."
                if facts.served
                else "the rejection rule (assumed here; specbench's tests prove it by enumerating short sequences)."
            )
        )
    row = best_row(draft)
    if row.identical_prompts is None:
        return "Not checked: no text was compared with the target's own."
    how = "character for character" if facts.served else "token for token"
    same = (
        f"At gamma {row.gamma}, {row.identical_prompts:,} of {row.prompts:,} prompts give the target's own text, {how} "
        "(measured)."
    )
    again = len(differing(trials, None))
    unsteady = f"The target alone does not repeat its own text on {text.count(again, 'prompt')}." if again else ""
    return " ".join(part for part in (same, _margins(differing(trials, draft.draft), facts, draft), unsteady) if part)


def _margins(found: list[Divergence | None], facts: Facts, draft: DraftResult) -> str:
    """What the texts that differ say: rounding, or a bug."""
    if not found:
        return ""
    over = "" if len(draft.gammas) == 1 else f" over all {len(draft.gammas)} gammas"
    head = f"{text.count(len(found), 'text')}{over} {'differs' if len(found) == 1 else 'differ'}:"
    known = [each for each in found if each is not None and (each.margin is not None or each.gap is not None)]
    wide = [each for each in known if not explained(each, facts.precision)]
    parts = []
    if len(wide) < len(known):
        near_ties = _of(len(known) - len(wide), len(found))
        parts.append(f"{near_ties}where the target's two best tokens nearly tie, which rounding can flip")
    if wide:
        parts.append(f"{_of(len(wide), len(found))}at a wide margin, up to {widest(wide)}, **so suspect a bug**")
    if len(known) < len(found):
        parts.append(f"{_of(len(found) - len(known), len(found))}without a recorded margin")
    return f"{head} {'; '.join(parts)}. {_nearly(known, facts)}".rstrip()


def widest(found: Sequence[Divergence]) -> str:
    """The largest distance of the two best tokens, in whichever measure it is known."""
    margins = [each.margin for each in found if each.margin is not None]
    if margins:
        return f"{text.percent(max(margins))} of the top logit"
    return f"{max(each.gap or 0.0 for each in found):.2f} nats between them"


def _nearly(known: Sequence[Divergence], facts: Facts) -> str:
    """What counts as a near-tie, and on what ground."""
    if facts.served:
        if not known:
            return ""
        return f"Nearly means within {NEAR_TIE_NATS:.2g} nats, by the target's own log-probabilities (assumed)."
    near = f"Nearly means within {100 * near_tie_limit(facts.precision):.3g}% of the top logit"
    near += f" in {facts.precision} (assumed)." if facts.precision in NEAR_TIE else " (assumed)."
    if facts.precision == "float32":
        near += " In float32 such ties are rare: suspect a bug until each has been looked at."
    return near


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
    if summary.server is not None:
        found += _server(summary)
    if any(row.round_time is not None for draft in summary.drafts for row in draft.gammas):
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


def _server(summary: Summary) -> Iterator[Doubt]:
    """What cannot be seen from outside."""
    rows = [row for draft in summary.drafts for row in draft.gammas]
    if any(row.tokens_per_round is None for row in rows):
        yield Doubt(
            "not known",
            "How many tokens a round gives and what it costs: the server does not tell its rounds.",
            "a server that tells them for each request.",
        )
    elif any(not row.survival for row in rows):
        yield Doubt(
            "not known",
            "Which drafted tokens survive, by position: the server tells totals alone.",
            "a server that lists its rounds.",
        )
    share = min((row.counted_share for row in rows if row.drafted is not None), default=1.0)
    if share < 1:
        yield Doubt(
            "measured",
            f"Rounds, r and tau are over {text.percent(share)} of the texts, those of which the server tells enough.",
            "a server that tells all of them.",
        )
    yield Doubt(
        "not known",
        "Where a round's time goes: a server does not say what is drafting, what verifying and what neither.",
        "the same models measured in process, or the server's own profile.",
    )
    yield Doubt(
        "not known",
        "What other gammas, loads or drafts would give: nothing was probed, so nothing is predicted.",
        "measuring them.",
    )


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
