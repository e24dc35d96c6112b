"""A run for the engineer: from guesses to the verdict, every step with its sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult
from specbench.report import readings, wording
from specbench.report.brief import glance, sections, steps
from specbench.report.brief.doubts import cautions
from specbench.report.economics import economics
from specbench.report.engine_words import words_of
from specbench.report.explain.story import Story, add, apart, asked, divide, drafts, multiply, reaches, verdict


def engineer_values(story: Story) -> dict[str, Any]:
    """What the template needs."""
    summary, facts, draft = story.summary, story.facts, story.draft
    found = economics(draft, story.policy, summary.server.load if summary.server else None)
    return {
        "run": text.code(Path(summary.run).name),
        "banner": wording.banner(facts),
        "verdict": verdict(story),
        "drafts": drafts(story),
        "draft": text.code(draft.draft),
        "asked": asked(story.policy),
        "arms": _arms(story),
        "scope": wording.scope(facts, summary.engine, summary.hardware, summary.drafts),
        "chain": [line for line in (_guesses(story), _yield(story), _cost(story), *_speedup(story)) if line],
        "end_to_end": _end_to_end(story),
        "why": _why(story),
        "categories": wording.policy_line(draft, story.policy) if wording.by_speedup(draft) else "",
        "limits": [line for line in (*_limits(story, found.break_even), _load(story), found.batch_note) if line],
        "counts": [line for line in (_rates(draft), _survival(draft), sections.gamma_note(draft)) if line],
        "predicted": list(found.accuracy),
        "lossless": glance.losslessness(draft, facts, story.trials),
        "noise": glance.noise(summary),
        "cautions": cautions(summary.warnings),
        "steps": steps.next_steps(summary, facts, story.trials),
        "folder": story.folder,
    }


def _arms(story: Story) -> str:
    facts, summary = story.facts, story.summary
    gammas = text.join(str(row.gamma) for row in story.draft.gammas)
    each = "the draft" if not story.several else f"{len(summary.drafts)} drafts"
    again = " the target alone again (A/A)," if any(t.arm.kind == "baseline-again" for t in story.trials) else ""
    number = text.measured(story.row.prompts, facts.batch_size)
    return (
        f"{number} in these arms: the target alone,{again} and {each} at gamma {gammas}{words_of(facts).turns}. "
        f"{facts.done:,} trials count."
    )


def _guesses(story: Story) -> str:
    row = story.row
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
    return f"{line[:1].upper()}{line[1:]}{broken}"


def _yield(story: Story) -> str:
    row = story.row
    if row.tokens_per_round is None or row.accepted is None or row.rounds is None:
        why = words_of(story.facts).no_rounds
        return f"How many tokens a round yields is not known: {why}. So the speedup cannot be taken apart here."
    kept = f"{row.accepted / row.rounds:.2f}"
    return (
        f"A round keeps {divide(f'{row.accepted:,}', f'{row.rounds:,}', f'{kept} guesses on average')}, and the target "
        f"adds one token itself: {add(['1', kept], f'{row.tokens_per_round:.2f} tokens per round')}. This is tau "
        "(measured)."
    )


def _cost(story: Story) -> str:
    row, found = story.row, story.cost
    round_s = row.round_s if found is None else found.round_s
    if row.tokens_per_round is None or round_s is None or story.steps is None:
        return ""
    whole, step = text.milliseconds(round_s), text.milliseconds(1 / story.draft.baseline_tokens_per_s)
    cost = divide(whole, step, f"{story.steps:.2f} target steps")
    if found is None:
        token = text.milliseconds(round_s / row.tokens_per_round)
        made = multiply(f"{row.tokens_per_round:.2f}", token, whole)
        head, marks = f"With the draft a token takes {token}, which makes for a round: {made}", "measured, from outside"
    else:
        times = found.times
        parts = [text.milliseconds(part) for part in (times.draft_s, times.verify_s, times.other_s)]
        head, marks = f"Drafting, verifying and the host gap make up a round: {add(parts, whole)}", "measured"
    return f"{head}. A target step takes {step}. The round's cost ({marks}): {cost}."


def _speedup(story: Story) -> list[str]:
    """The quotient beside the clock, and what its agreement is worth."""
    row = story.row
    clock = text.estimate(row.speedup, row.speedup_low, row.speedup_high)
    if row.tokens_per_round is None or not story.steps:
        return [f"The clock says {clock} for decoding at gamma {row.gamma} (measured).", reaches(story)]
    exact = row.tokens_per_round / story.steps
    quotient = divide(f"{row.tokens_per_round:.2f}", f"{story.steps:.2f}", text.speedup(exact))
    line = f"Tokens per round over the round's cost: {quotient}. The clock says {clock} for decoding (measured)."
    if f"{exact:.2f}" != f"{row.speedup:.2f}":
        line += f" They differ: {apart(story)}."
    else:
        line += (
            " Both come from the same trials, so they agree by construction: this shows where the speedup comes from, "
            "and is no second measurement of it."
        )
    return [line, reaches(story)]


def _end_to_end(story: Story) -> str:
    row, share = story.row, story.facts.prefill_share
    took = (
        f" {words_of(story.facts).prefill} is {text.percent(share)} of the time of the target alone."
        if share is not None
        else ""
    )
    return (
        f"Decode alone is {text.speedup(row.speedup)} at gamma {row.gamma}, end to end {text.speedup(row.speedup_e2e)} "
        f"(both measured, the second without an interval).{took}"
    )


def _why(story: Story) -> str:
    """The rule, and where this run stands in it. The rule's own words for a closed gate are kept."""
    draft, policy = story.draft, story.policy
    gates = [text.escape(text.sentence(reason)) for reason in draft.reasons if not reason.startswith("P(")]
    least = f"for {text.speedup(policy.min_speedup)} or more"
    sure, unlikely = text.percent(policy.confidence), text.percent(1 - policy.confidence)
    p = draft.probability
    if p is None and draft.verdict == "NO-GO":
        return f"A gate fails, and then no speed counts: {' '.join(gates)}"
    if p is None:
        return f"Without an interval there is neither GO nor NO-GO. {' '.join(gates)}"
    chance = text.chance(p)
    if draft.verdict == "GO":
        return f"GO takes a chance of at least {sure} {least}, and no gate that fails. It is {chance}, and none fails."
    if draft.verdict == "UNCLEAR" and p >= policy.confidence:
        return f"The chance {least} is {chance}, which GO takes, but a gate is in doubt: {' '.join(gates)}"
    if draft.verdict == "UNCLEAR":
        both = f"GO takes a chance of at least {sure} {least}, NO-GO one of at most {unlikely}."
        return f"{both} It is {chance}. {' '.join(gates)}"
    if p <= 1 - policy.confidence:
        also = f" Besides: {' '.join(gates)}" if gates else ""
        return f"NO-GO takes a chance of at most {unlikely} {least}. It is {chance}.{also}"
    return f"The chance {least} is {chance}, but a gate fails: {' '.join(gates)}"


def _limits(story: Story, break_even: str) -> tuple[str, ...]:
    if story.row.drafted == 0:
        return ("Nothing was drafted, so nothing here tells what a draft that works would give or cost.",)
    if story.cost is not None:
        return readings.limiting(story.cost), readings.ceilings(story.cost), break_even
    # The first sentence is the sum that the chain has already made.
    return *readings.whole_round(story.draft, story.facts)[1:], break_even


def _load(story: Story) -> str:
    return readings.stops_paying_words(story.summary, story.draft, story.policy)


def _rates(draft: DraftResult) -> str:
    rows = [row for row in draft.gammas if row.acceptance_rate is not None]
    if len(rows) < 2:
        return ""
    listed = text.join(f"{text.percent(row.acceptance_rate)} at gamma {row.gamma}" for row in rows)
    return f"r is {listed} (measured). It falls as gamma grows for any draft, so it says nothing about which is best."


def _survival(draft: DraftResult) -> str:
    rows: list[GammaResult] = [row for row in draft.gammas if row.survival and None not in row.survival]
    if not rows:
        return ""
    row = rows[-1]
    listed = text.join(text.percent(share) for share in row.survival)
    what = "one guess" if len(row.survival) == 1 else f"1 to {len(row.survival)} guesses"
    return f"Survival at gamma {row.gamma}, for {what}: {listed} of rounds (measured)."
