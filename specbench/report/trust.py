"""How far to believe a run: whether the text is the same, how still the machine was, and what to distrust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from specbench.records import Caution, Policy, Trial
from specbench.report import text
from specbench.report.contract import DraftResult, Summary
from specbench.report.facts import Facts, differing
from specbench.report.steps import limited_command
from specbench.report.wording import best_row

Kind = Literal["measured", "predicted", "assumed"]

# Largest top-2 margin, relative to the top logit, still read as rounding: eight steps of the precision, since
# rounding adds up through the layers.
_NEAR_TIE = {"bfloat16": 8 * 2.0**-8, "float16": 8 * 2.0**-11}

# A run whose outputs were mostly cut says little about how long answers end.
_MANY_CUT = 0.5


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
            f"Not checked in this run: at temperature {facts.sampling.temperature:g} two runs draw different tokens, so "
            "their texts cannot be compared token for token. That the output keeps the target's distribution rests on "
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
    limit = _NEAR_TIE.get(facts.precision or "")
    if limit is None:
        where = facts.precision or "a precision that was not recorded"
        return f"{head} in {where} rounding does not explain that. **Suspect a bug** and do not switch it on before it is found."
    known = [margin for margin in margins if margin is not None]
    wide = [margin for margin in known if margin > limit]
    parts = []
    if len(wide) < len(known):
        parts.append(f"{len(known) - len(wide):,} at a near-tie of the target's two best tokens, which is rounding")
    if wide:
        parts.append(
            f"{len(wide):,} at a wide margin (up to {text.percent(max(wide))} of the top logit), **suspect a bug**"
        )
    if len(known) < len(margins):
        parts.append(f"{len(margins) - len(known):,} without a recorded margin")
    return f"{head} {'; '.join(parts)}. Near means within {limit:.1%} of the top logit in {facts.precision} (assumed)."


def noise(summary: Summary, draft: DraftResult) -> str:
    """The A/A arm: how far two measurements of the same thing lie apart here."""
    if summary.noise_floor is None:
        return "No noise floor: the target alone was not measured twice, or over too few prompts to say."
    floor = summary.noise_floor
    said = f"The target alone, measured against itself, agrees within {text.percent(floor)} (measured, A/A)."
    if abs(draft.speedup - 1) <= floor:
        return f"{said} The speedup of {text.speedup(draft.speedup)} is not larger than that: it may be noise."
    return f"{said} The speedup differs from 1.00x by more than that."


def doubts(summary: Summary, facts: Facts) -> list[Doubt]:
    """Every claim of the brief that is predicted, assumed or rests on little; the run's own warnings are apart."""
    found = [*_sample(facts), *_circumstances(facts)]
    for draft in summary.drafts:
        name = f" ({text.code(draft.draft)})" if len(summary.drafts) > 1 else ""
        found += [*_prompts(draft, name), *_numbers(draft, facts.policy, name)]
    if not any(caution.code.startswith("noise") for caution in summary.warnings) and summary.noise_floor is None:
        found.append(
            Doubt(
                "assumed",
                "The machine was steady: without a noise floor this was not checked.",
                "a run with an A/A arm.",
            )
        )
    return found


def _sample(facts: Facts) -> list[Doubt]:
    work, found = facts.workload, []
    if not facts.finished:
        found.append(
            Doubt("measured", "The run did not finish, so its numbers cover part of the prompts.", "finishing it.")
        )
    if work.used is not None and work.available is not None and work.used < work.available:
        command = limited_command(facts, work.available)
        run = f": {text.code(command)}" if command else "."
        found.append(
            Doubt(
                "measured",
                f"The sample is {work.used:,} of the {work.available:,} prompts in the workload.",
                f"measuring the other {work.available - work.used:,}{run}",
            )
        )
    return found


def _circumstances(facts: Facts) -> list[Doubt]:
    found = []
    if facts.disturbed:
        found.append(
            Doubt(
                "measured",
                f"{facts.disturbed:,} of {facts.done:,} trials shared the machine with other work to the end.",
                "a quiet machine.",
            )
        )
    if facts.cut_share is not None and facts.cut_share > _MANY_CUT and facts.max_new_tokens:
        found.append(
            Doubt(
                "assumed",
                f"Long answers behave like short ones: {text.percent(facts.cut_share)} of the target's answers were cut at "
                f"{facts.max_new_tokens:,} tokens.",
                "a larger `--max-new-tokens`.",
            )
        )
    return found


def _prompts(draft: DraftResult, name: str) -> list[Doubt]:
    few = [c for c in draft.categories if c.speedup_low is None]
    found = []
    if few:
        listed = text.join(f"{text.escape(c.category)} ({c.prompts:,})" for c in few)
        found.append(
            Doubt("measured", f"Too few prompts for an interval{name}: {listed}.", "more prompts of these categories.")
        )
    called = [c for c in draft.categories if c.verdict != "UNCLEAR"]
    if len(called) > 1:
        found.append(
            Doubt(
                "measured",
                f"{len(called)} categories are each decided alone{name}: the more there are, the likelier one is wrong by chance.",
                "the same verdicts on fresh prompts.",
            )
        )
    return found


def _numbers(draft: DraftResult, policy: Policy, name: str) -> list[Doubt]:
    row, found = best_row(draft), []
    if row.slower_share > 0:
        found.append(
            Doubt(
                "measured",
                f"The speedup is an average{name}: {text.percent(row.slower_share)} of prompts ran below "
                f"{text.speedup(policy.slower_than)} at gamma {row.gamma}.",
                "a policy by category, if those prompts share one.",
            )
        )
    if any(other.predicted_speedup is not None for other in draft.gammas):
        found.append(
            Doubt(
                "predicted",
                f"Predicted speedups{name} come from acceptance and round times; the verdict does not use them.",
                "nothing: the measurement stands beside each.",
            )
        )
    return found


def cautions(warnings: Sequence[Caution]) -> list[str]:
    """The run's own warnings, with their cures."""
    return [
        f"{text.code(w.code)}: {text.escape(text.sentence(w.message))} {text.escape(text.sentence(w.cure))}"
        for w in warnings
    ]
