"""What to distrust: every claim of a brief that is predicted, assumed, extrapolated or rests on few prompts, with what
would change it; and measured ones that are easily taken for more than they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specbench import text
from specbench.analysis.contract import CategoryResult, DraftResult, Summary
from specbench.analysis.facts import MANY_CUT, Facts
from specbench.records import Caution, Policy
from specbench.report.brief.commands import limited_command
from specbench.report.templating import Doubt
from specbench.report.wording import FEW_PROMPTS, best_row, by_speedup

# Fewer slow prompts than this are not worth a line, and an interval that ends nearer than this is a close call.
_MENTIONED = 0.05
_CLOSE = 0.05

# Said by the banner on top of the brief.
_SAID_ABOVE = {"unfinished-run"}


# One for each mark that a sentence may carry.
_MARKED = (
    Doubt(
        "assumed",
        "Acceptance is much the same on another machine or engine, with the same models, prompts and sampling.",
        "counting it there: `specbench sweep` on that engine, then `specbench compare`.",
        "carry over",
    ),
    Doubt(
        "assumed",
        "Your traffic has the shares of categories that were stated, and its prompts are like these.",
        "shares counted in your logs, given with `--mix`.",
        "mix",
    ),
    Doubt(
        "predicted",
        "What one term made perfect, or a draft that costs nothing, would give: all else is held as measured here.",
        "measuring a draft or an engine that comes near it.",
        "what if",
    ),
    Doubt(
        "predicted",
        "What one more drafted token would cost and give: its time is taken as the mean of those before it.",
        "sweeping the larger gammas.",
        "another round",
    ),
    Doubt(
        "predicted",
        "Speedups from the replay's rounds and from costs timed before the first trial: those of the models alone, or "
        "a server's rounds that keep no draft.",
        "measuring those gammas.",
        "curve",
    ),
    Doubt(
        "predicted",
        "Speedups by category, from the same replay and the same costs.",
        "measuring them: the column beside it, where there is one.",
        "category",
    ),
    Doubt(
        "predicted",
        "Larger batches, or more clients at once: the rounds of this run, costs timed at each. That work outside the "
        "models stays the same for a round is assumed, and so is a batch that stays full.",
        "a sweep with `--batch-size`, or `--concurrency` on your server.",
        "batches",
    ),
    Doubt(
        "extrapolated",
        "How many prompts would settle it: from the spread of these, if the speedup stays where it is.",
        "measuring them; `specbench plan` shows how the number comes about.",
        "settle",
    ),
    Doubt(
        "assumed",
        "The price of an hour, as it was stated, paid whether the machine is busy or not.",
        "your bill, and how busy the machine is.",
        "price",
    ),
    Doubt(
        "assumed",
        "Sampled text follows the target's own distribution: that rests on the rejection rule.",
        "comparing many sampled answers, or a greedy run, which can be compared token for token.",
        "lossless",
    ),
    Doubt(
        "assumed",
        "How near a tie must be for rounding to flip it: a rule of thumb.",
        "the same run in float32, where hardly any text should differ.",
        "near-tie",
    ),
    Doubt(
        "assumed",
        "Settings for engines that were not measured do there what was measured here.",
        "running them: the counters named beside each must show these drafts.",
        "other engine",
    ),
    Doubt(
        "assumed",
        "A category's verdict holds on a server of its own, whose batches are others.",
        "measuring each server under its own load.",
        "split",
    ),
    Doubt(
        "assumed",
        "The machine was steady: there is no noise floor to show it.",
        "the target alone measured twice over more prompts.",
        "steady",
    ),
)


def doubts(summary: Summary, facts: Facts) -> list[Doubt]:
    """All there may be; a page keeps those that it refers to and those that need no mark."""
    found = [*_MARKED, *_few(summary), *_run(summary, facts), *_unsteady(summary)]
    for draft in summary.drafts:
        name = f" ({text.code(draft.draft)})" if len(summary.drafts) > 1 else ""
        found += _draft(draft, facts.policy, name)
    if summary.server is not None:
        found += _server(summary)
    else:
        found += _not_recorded(summary)
    return found


def cautions(warnings: Sequence[Caution]) -> list[str]:
    """The run's own warnings, with their hints."""
    return [
        f"{text.code(w.code)}: {text.escape(text.sentence(w.message))} {text.escape(text.sentence(w.hint))}"
        for w in warnings
        if w.code not in _SAID_ABOVE
    ]


def _few(summary: Summary) -> Iterator[Doubt]:
    """What rests on few prompts, category by category and as a whole."""
    few = {c.category: c.prompts for d in summary.drafts for c in by_speedup(d) if c.prompts < FEW_PROMPTS}
    parts = [f"{text.escape(name)} ({prompts:,})" for name, prompts in few.items()]
    whole = max((best_row(draft).prompts for draft in summary.drafts), default=0)
    if whole < FEW_PROMPTS:
        parts.insert(0, f"the whole ({whole:,})")
    if parts:
        yield Doubt(
            "few prompts",
            f"Fewer than {FEW_PROMPTS} prompts: {text.join(parts)}.",
            f"{FEW_PROMPTS} or more prompts of each kind.",
            "few",
        )


def _run(summary: Summary, facts: Facts) -> Iterator[Doubt]:
    work = facts.workload
    if work.used is not None and work.available is not None and work.used < work.available:
        command = limited_command(facts, work.available)
        others = work.available - work.used
        rest = f"measuring the other {others:,}" if others > 1 else "measuring the one left out"
        yield Doubt(
            "extrapolated",
            f"The sample, {work.used:,} of the {work.available:,} prompts in the workload, stands for all of them.",
            f"{rest}: {text.code(command)}" if command else f"{rest}.",
        )
    if facts.cut_share is not None and facts.cut_share > MANY_CUT and facts.max_new_tokens:
        yield Doubt(
            "extrapolated",
            f"Answers go on as they begin: {text.percent(facts.cut_share)} of the target's were cut at "
            f"{facts.max_new_tokens:,} tokens.",
            "a larger `--max-new-tokens`.",
        )


def _unsteady(summary: Summary) -> Iterator[Doubt]:
    """Categories whose minutes were not like the others."""
    ratios = {c.category: c.baseline_ratio for draft in summary.drafts for c in by_speedup(draft) if c.baseline_ratio}
    if ratios:
        listed = text.join(f"{text.escape(name)} ({abs(ratio - 1):.0%})" for name, ratio in ratios.items())
        yield Doubt(
            "measured",
            f"The machine was not steady throughout: measured twice, the target alone differs from itself by more than "
            f"chance on {listed}. Intervals there are wider for it.",
            "a quieter machine, or `--repeats`.",
        )


def _not_recorded(summary: Summary) -> Iterator[Doubt]:
    """What a sweep in process usually tells, and this one does not."""
    parts = []
    if summary.batch_size == 1 and all(len(draft.batches) < 2 for draft in summary.drafts):
        parts.append("at which batch it stops paying (nothing was timed beyond batch 1)")
    if any(draft.memory is None for draft in summary.drafts):
        parts.append("how much memory it adds beside its weights (its cache was not recorded)")
    if parts:
        yield Doubt(
            "not known",
            f"{text.sentence(text.join(parts))}",
            "a new sweep, with `--probe-batch-sizes 1,2,4,8`, or one under your own load.",
        )


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
    if not any(draft.predicted for draft in summary.drafts):
        yield Doubt(
            "not known",
            "What other gammas, loads or drafts would give: nothing was probed, so nothing is predicted.",
            "measuring them, or `specbench probe` on this engine and `--costs`.",
        )


def _draft(draft: DraftResult, policy: Policy, name: str) -> Iterator[Doubt]:
    categories = by_speedup(draft)
    close = [category for category in categories if category.verdict != "UNCLEAR" and _close(category, policy)]
    if close:
        listed = text.join(f"{text.escape(c.category)} {text.interval(c.speedup_low, c.speedup_high)}" for c in close)
        minimum = text.speedup(policy.min_speedup)
        yield Doubt(
            "measured",
            f"Decided, but with an interval that ends near {minimum} or holds it{name}: {listed}.",
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
    """The end that faces the minimum is near it, or beyond: an interval has two sides, a verdict one."""
    go = category.verdict == "GO"
    end = category.speedup_low if go else category.speedup_high
    return end is not None and (end - policy.min_speedup if go else policy.min_speedup - end) < _CLOSE
