"""A run for the person who decides: what it gives, what it takes, what could go wrong, and what it does not cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specbench import text
from specbench.analysis.facts import differing, parted
from specbench.report import readings, wording
from specbench.report.brief import steps
from specbench.report.brief.glance import glance
from specbench.report.economics import economics
from specbench.report.engine_words import words_of
from specbench.report.explain.story import Story, apart, asked, drafts, number, reaches, verdict
from specbench.report.templating import mark


def manager_values(story: Story) -> dict[str, Any]:
    """What the template needs."""
    summary, facts, draft = story.summary, story.facts, story.draft
    header, rows = glance(summary, facts, story.trials)
    return {
        "run": text.code(Path(summary.run).name),
        "banner": wording.banner(facts),
        "verdict": verdict(story),
        "plain": _plain(story),
        "drafts": drafts(story),
        "draft": text.code(draft.draft),
        "asked": asked(story.policy),
        "measured": _measured(story),
        "glance_header": header,
        "glance_rows": rows,
        "gain": _gain(story),
        "whole": _whole(story),
        "slower": _slower(story),
        "categories": wording.policy_line(draft, story.policy) if wording.by_speedup(draft) else "",
        "money": _money(story),
        "same": _same(story),
        "takes": " ".join(part for part in (_limit(story), _needed(story)) if part),
        "uncovered": _uncovered(story),
        "steps": [step.do for step in steps.next_steps(summary, facts, story.trials)],
        "folder": story.folder,
    }


def _plain(story: Story) -> str:
    """The verdict once more without its terms, no surer than it."""
    found, policy = story.summary.choice if story.several else None, story.policy
    of = story.draft if found is None else found
    least = text.speedup(policy.min_speedup)
    what = "whole requests" if policy.metric == "e2e" else "answers, once begun,"
    if of.probability is None and of.verdict == "NO-GO":
        return "In plain words: whatever the speed, this alone rules it out."
    if of.speedup_low is None or of.speedup_high is None:
        return "In plain words: too little was measured to say what other prompts would do."
    low, high = text.speedup(of.speedup_low), text.speedup(of.speedup_high)
    if of.verdict == "GO":
        return (
            f"In plain words: with prompts like these, in this very setting, expect {what} to come {low} to {high} as "
            f"fast on average ({text.percent(policy.confidence)} interval). That it is {least} or more is at least as "
            "sure as you asked."
        )
    if of.verdict == "UNCLEAR" and of.probability is not None and of.probability >= policy.confidence:
        return "In plain words: it is fast enough on average; whether too many prompts get slower is open."
    if of.verdict == "UNCLEAR":
        return f"In plain words: {low} to {high} all fit what was seen, so {least} is open. This is not a no."
    if of.speedup_high < 1:
        return f"In plain words: it makes {what} slower here, and you asked for {least}."
    if of.probability is not None and of.probability <= 1 - policy.confidence:
        return f"In plain words: expect {low} to {high} here; the {least} that you asked for is unlikely."
    return "In plain words: too many prompts get slower, whatever the average is."


def _measured(story: Story) -> str:
    facts, summary = story.facts, story.summary
    ways = "with the draft and without it"
    if story.several:
        ways = f"with each of {len(summary.drafts)} drafts and without any"
    limit = f" Answers ended after {facts.max_new_tokens:,} tokens at most." if facts.max_new_tokens else ""
    return (
        f"{text.measured(story.row.prompts, facts.batch_size)} were answered {ways}, on "
        f"{text.code(summary.hardware)} with {text.code(summary.engine)}, {wording.load(facts)}.{limit}"
    )


def _gain(story: Story) -> str:
    """Guesses, tokens per round, the time of a round, and what these make together."""
    row = story.row
    clock = f"Decoding ran {text.speedup(row.speedup)} as fast at gamma {row.gamma} (measured)."
    if row.drafted == 0:
        return f"The draft guessed nothing at all, so the target worked alone. {clock}"
    kept = ""
    if row.acceptance_rate is not None:
        kept = f"Out of 100 guessed tokens, {text.percent(row.acceptance_rate).rstrip('%')} were kept. "
        if not row.accepted:
            kept = "Not one guessed token was kept, which points to a broken set-up rather than to a poor draft. "
    if row.tokens_per_round is None or not story.steps:
        return f"{kept}How that comes about is not known, because {words_of(story.facts).no_rounds}. {clock}"
    exact = row.tokens_per_round / story.steps
    tau, steps_ = f"{row.tokens_per_round:.2f}", f"{story.steps:.2f}"
    rounded = f"{number(tau) / number(steps_):.2f}" != f"{exact:.2f}"
    line = (
        f"{kept}A round yielded {tau} tokens, where the target alone writes one; but it took {steps_} times as long as "
        f"that one. {tau} tokens in {steps_} times the time is {_about(text.speedup(exact), rounded)}."
    )
    if f"{exact:.2f}" == f"{row.speedup:.2f}":
        clock = "The clock says the same of decoding (measured)."
    else:
        clock = f"The clock says {text.speedup(row.speedup)} of decoding (measured): {apart(story)}."
    return " ".join(part for part in (line, clock, reaches(story)) if part)


def _about(speedup: str, rounded: bool) -> str:
    return f"about {speedup} as fast (the digits shown are rounded)" if rounded else f"{speedup} as fast"


def _whole(story: Story) -> str:
    row, share = story.row, story.facts.prefill_share
    reading = words_of(story.facts).reading
    part = f" ({text.percent(share)} of the time without the draft)" if share is not None else ""
    if story.policy.metric == "e2e":
        return f"Of a whole request the writing is only a part; the rest is {reading}{part}."
    return (
        f"That is the writing. Together with {reading}{part}, a whole request ran {text.speedup(row.speedup_e2e)} as "
        "fast, token for token (measured, without an interval)."
    )


def _slower(story: Story) -> str:
    policy, share = story.policy, story.draft.slower_share
    if share is None:
        return "How many prompts get slower is not known."
    return (
        f"{text.percent(share)} of prompts ran at less than {text.speedup(policy.slower_than)} of their speed without "
        f"the draft (measured); you allow {text.percent(policy.max_slower_share)}."
    )


def _money(story: Story) -> str:
    """What the table above has no line for."""
    parts, model = [], story.facts.drafts.get(story.draft.draft)
    if story.draft.memory is None:
        size = text.size(model.weight_bytes, "B") if model is not None and model.weight_bytes else None
        if model is not None and model.parameters == 0:
            parts.append("The draft is no model and takes hardly any memory.")
        elif size is not None:
            parts.append(f"The draft adds {size} of memory for itself, and some for each request, which is not known.")
        else:
            parts.append("How much memory the draft takes is not known.")
    if story.draft.money is None:
        command = text.code(f"specbench brief {story.folder} --price-per-hour 2")
        parts.append(f"No price was given; {command} adds what a million tokens cost at 2 an hour.")
    parts.append("A faster answer is a cheaper one only if the machine is paid by the hour and its time gets used.")
    return " ".join(parts)


def _same(story: Story) -> str:
    facts, row = story.facts, story.row
    if not facts.sampling.greedy:
        rule = f"That every text is as likely as before rests on the rejection rule {mark('assumed', 'lossless')}."
        return f"Answers are drawn by chance here, so two runs differ anyway and nothing was compared. {rule}"
    if row.identical_prompts is None:
        return "Not compared in this run."
    if row.identical_prompts == row.prompts:
        return f"Yes: all {row.prompts:,} are what the target alone wrote (measured)."
    found = differing([t for t in story.trials if t.arm.gamma == row.gamma], story.draft.draft)
    by = parted(found, facts.precision)
    wide = len(by.wide)
    head = f"{row.identical_prompts:,} of {row.prompts:,} are word for word what the target alone wrote (measured)."
    if wide:
        return (
            f"{head} {text.count(wide, 'text')} {'parts' if wide == 1 else 'part'} from it where rounding is no "
            "explanation, so there may be a bug; until it is found no speed counts."
        )
    if len(found) - by.unknown < row.prompts - row.identical_prompts:
        return f"{head} Why the others part from it was not recorded for all of them."
    return (
        f"{head} The others part from it at a near-tie, where rounding decides between two words that the target finds "
        f"about equally good {mark('assumed', 'near-tie')}."
    )


def _limit(story: Story) -> str:
    """What holds it back, and what there would be to win."""
    found = story.cost
    if story.row.drafted == 0:
        return "First of all the draft would have to guess; why it did not, an engineer has to find out."
    if found is None:
        if story.facts.served:
            return "How much of a round is guessing and how much checking is not known: the server does not tell."
        return ""
    tau, step_s, times = found.tau, found.step_s, found.times
    if found.limit == "acceptance" and tau >= story.policy.min_speedup:
        return (
            "A round takes little longer than the target alone for one token; only more right guesses would help much."
        )
    if found.limit == "acceptance":
        return (
            "What holds it back is how few guesses are right: even if guessing and checking took no time of their own, "
            f"it would be {text.speedup(tau)} at most {mark('predicted', 'what if')}."
        )
    name, free_s = {
        "drafting": ("guessing", found.round_s - times.draft_s),
        "verifying": ("checking", found.round_s - found.extra_verify_s),
        "the rest": ("the program around the two models", found.round_s - times.other_s),
    }[found.limit]
    return (
        f"What holds it back most is the time for {name}. If that took nothing extra and all else stayed the same, "
        f"decoding would be {text.speedup(tau * step_s / free_s)} as fast {mark('predicted', 'what if')}."
    )


def _needed(story: Story) -> str:
    row, even = story.row, story.row.break_even
    if even is None or row.tokens_per_round is None or row.drafted == 0:
        return ""
    least = text.speedup(story.policy.min_speedup)
    needed, most = even.minimum_tokens_per_round, row.gamma + 1
    line = f"At this cost a round has to yield {needed:.2f} tokens for {least} of decoding; it yields "
    line += f"{row.tokens_per_round:.2f} (measured)."
    if needed > most:
        line += f" More than {most} it cannot yield, so guessing and checking would have to get cheaper."
    return line


def _uncovered(story: Story) -> list[str]:
    summary, facts, work = story.summary, story.facts, story.facts.workload
    found = economics(story.draft, story.policy)
    lines = [wording.carry(facts)]
    if facts.served and (loads := readings.stops_paying_words(summary, story.draft, story.policy)):
        lines.append(f"Load: {loads}")
    elif found.batch_note:
        lines.append(f"More requests at once: {found.batch_note[:1].lower()}{found.batch_note[1:]}")
    else:
        lines.append("More requests at once: not measured. With less idle capacity a gain mostly shrinks, or is lost.")
    if facts.cut_share and facts.max_new_tokens:
        lines.append(
            f"Longer answers: {text.percent(facts.cut_share)} of these were cut at {facts.max_new_tokens:,} tokens."
        )
    if work.used is not None and work.available is not None and work.used < work.available:
        lines.append(f"All of your prompts: {work.used:,} of the {work.available:,} in the file were measured.")
    lines.append(_noise(story))
    codes = [caution.code for caution in summary.warnings if caution.code != "unfinished-run"]
    if codes:
        listed = text.join(text.code(code) for code in codes)
        lines.append(f"Warnings of this run, which an engineer should read first: {listed}.")
    return lines


def _noise(story: Story) -> str:
    floor = story.summary.noise_floor
    if floor is None:
        return f"How steady the machine was: not known, taken as steady {mark('assumed', 'steady')}."
    line = f"Differences of less than {floor:.1%}: two timings of the same thing lie as far apart here (measured)."
    near = " This run's speedup is no further from 1.00x: perhaps noise."
    return line + (near if abs(story.draft.speedup - 1) <= floor else "")
