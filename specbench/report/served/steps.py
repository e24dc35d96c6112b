"""What to do next after measuring a server: from outside, without the parts of a round's time."""

from __future__ import annotations

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, Summary
from specbench.analysis.facts import Facts
from specbench.drafters import parse_draft
from specbench.report.brief.step import Step
from specbench.report.wording import best_row

# So many requests at once are far enough from the most that were measured to tell something new.
_MORE = 4


def server_steps(summary: Summary, draft: DraftResult, facts: Facts) -> list[Step]:
    """At least two, the most useful first, for the draft."""
    row = best_row(draft)
    load, gamma = _load(summary, draft, facts), _gamma(draft, row)
    about = [_acceptance(summary, draft, row, facts), _other_engine(row, facts)]
    order = [gamma, *about, load]
    if draft.verdict == "GO":
        order = [_off_above(draft, facts), *([load, gamma] if len(facts.loads) == 1 else [gamma, load]), *about]
    return [step for step in order if step is not None]


def _off_above(draft: DraftResult, facts: Facts) -> Step | None:
    """Where the verdict at the first load does not hold for larger ones."""
    at = draft.stops_paying_at_concurrency
    if at is None:
        return None
    return Step(
        f"Turn {text.code(draft.draft)} off where {at:,} or more requests come at a time.",
        f"from there on even the best gamma is slower than the target alone; at {facts.loads[0].label} it pays.",
        "the loads in between were not measured, and the machine may fill up at another number with other prompts.",
    )


def _load(summary: Summary, draft: DraftResult, facts: Facts) -> Step:
    counts = sorted({load.concurrency for load in facts.loads if load.rate is None})
    most = counts[-1] if counts else 1
    more = ",".join(str(count) for count in sorted({1, most, most * _MORE}))
    if draft.verdict == "GO":
        why = "a verdict holds for its load, and with more requests at once the target has less idle capacity."
        doubt = "if your server is never busier than this, it tells nothing that you need."
    else:
        why = f"the verdict is for {facts.loads[0].label}; loads decide what a round costs."
        doubt = "more requests at once mostly make speculation dearer, not cheaper."
    measured = " and ".join(load.label for load in facts.loads) if len(facts.loads) < 3 else f"{len(facts.loads)} loads"
    return Step(
        f"Measure it at the load of your traffic: `--concurrency {more}`, or `--rate` with its requests per second.",
        f"{why} Measured: {measured}.",
        doubt,
    )


def _gamma(draft: DraftResult, row: GammaResult) -> Step | None:
    """Worth trying where the best gamma is at an end of those measured."""
    gammas = [each.gamma for each in draft.gammas]
    if row.gamma == max(gammas) and (len(gammas) > 1 or row.speedup > 1):
        return Step(
            f"Try gamma above {row.gamma}, the largest measured: `--gamma {row.gamma}..{row.gamma * 2}`.",
            f"it is the best so far, {text.speedup(row.speedup)} of decoding.",
            "each further token survives less often than the one before, so the gain may end at once.",
        )
    if row.gamma == min(gammas) and row.gamma > 1:
        return Step(
            f"Try gamma below {row.gamma}, the smallest measured: `--gamma 1..{row.gamma}`.",
            f"it is the best so far, {text.speedup(row.speedup)} of decoding.",
            "fewer drafts give fewer tokens per round as well.",
        )
    return None


def _acceptance(summary: Summary, draft: DraftResult, row: GammaResult, facts: Facts) -> Step | None:
    tau, steps, asked = row.tokens_per_round, row.round_steps, facts.policy.min_speedup
    if tau is None or steps is None or draft.verdict == "GO":
        return None
    if looks_up(draft):
        return Step(
            "Try a look-up of more tokens, or a draft model where the texts do not repeat themselves.",
            f"drafting costs next to nothing here, so it is verifying {row.gamma + 1} tokens that makes a round cost "
            f"{steps:.2f} target steps, for {tau:.2f} tokens: drafts that are rarer and right more often cost less.",
            "a longer look-up also misses some of what this one finds.",
        )
    if tau < asked:
        return Step(
            "Try a draft that agrees with the target more: a larger one, or one trained on this traffic.",
            f"{tau:.2f} tokens per round could not give {text.speedup(asked)} even if a round cost one target step.",
            "a larger draft makes the round dearer.",
        )
    tried = any(looks_up(each) for each in summary.drafts)
    return Step(
        "Try a cheaper draft, " + ("" if tried else "such as n-gram look-up where the engine has it, ") + "or one that "
        "agrees more.",
        f"a round gives {tau:.2f} tokens and costs {steps:.2f} target steps; {text.speedup(asked)} takes rounds of at "
        f"most {tau / asked:.2f}.",
        "how much of the round is drafting is not known, so a cheaper draft may save little.",
    )


def looks_up(draft: DraftResult) -> bool:
    """Whether nothing but a look-up drafts."""
    spec = parse_draft(draft.draft)
    return spec.look_up and spec.kind is None


def _other_engine(row: GammaResult, facts: Facts) -> Step:
    costs = f"a round costs {row.round_steps:.2f} target steps here" if row.round_steps is not None else ""
    return Step(
        "Measure the same prompts on another engine or with other settings of this one, and compare the two runs.",
        f"{costs or 'what a round costs is up to the engine'}; acceptance goes with the models, the cost of a round "
        "with the engine.",
        "an engine whose target step is faster makes the same draft dearer in comparison.",
    )
