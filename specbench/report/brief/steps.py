"""What to do next: picked from the run's own numbers, each step with its own doubt."""

from __future__ import annotations

from collections.abc import Sequence

from specbench import text
from specbench.analysis.contract import DraftResult, Summary
from specbench.analysis.facts import Facts, differing, parted
from specbench.decision.verdict import prompts_to_settle
from specbench.records import Divergence, Interval, Trial
from specbench.report.brief.commands import Step
from specbench.report.brief.server import looks_up, server_steps
from specbench.report.readings import Cost, cost
from specbench.report.templating import mark
from specbench.report.wording import best_row, by_speedup, recommended

_STEPS = 2

# A machine shared in so many of the trials was not the machine that is asked about.
_SHARED = 0.25

# Beyond this many times the prompts there are, more prompts is no advice.
_AFFORDABLE = 50


def next_steps(summary: Summary, facts: Facts, trials: Sequence[Trial]) -> list[Step]:
    """The two most useful next steps for the draft that was chosen; none without a measurement."""
    draft = recommended(summary)
    if draft is None:
        return []
    found = cost(draft, facts.policy)
    order = [_bug(draft, facts, trials), _idle(draft), _finish(facts), _quiet(summary, draft, facts, trials)]
    order.append(_more_prompts(draft, facts))
    if summary.server is not None:
        order += [_by_category(draft), *server_steps(summary, draft, facts)]
    elif found is None:
        order.append(_by_category(draft))
    else:
        improve = [_by_category(draft), _larger_gamma(draft, found), _limit(found, summary)]
        # A GO of our own loop switches nothing on: the engine that serves has to say it too.
        engine = _engine(draft, found, facts)
        order += [engine, *improve] if draft.verdict == "GO" else [*improve, engine]
    return [step for step in order if step is not None][:_STEPS]


def _bug(draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> Step | None:
    wide = parted(differing(trials, draft.draft), facts.precision).wide
    if not wide:
        return None
    if facts.served:
        doubt = "the limit for rounding is a rule of thumb, and requests that share a batch round otherwise."
    else:
        doubt = (
            f"the limit for rounding in {facts.precision} is a rule of thumb; in float32 the differences may vanish."
        )
    return Step(
        "Find out why texts differ before anything else.",
        f"{text.count(len(wide), 'text')} left the target's own where its two best tokens lie up to "
        f"{_apart(wide)} apart: no speedup makes up for other output.",
        doubt,
    )


def _idle(draft: DraftResult) -> Step | None:
    if best_row(draft).drafted != 0:
        return None
    return Step(
        f"Find out why {text.code(draft.draft)} never drafts.",
        "the run drafted nothing, so it measured the target alone against itself.",
        "a look-up drafts nothing where no text repeats itself, and then nothing is broken.",
    )


def _apart(wide: Sequence[Divergence]) -> str:
    margins = [each.margin for each in wide if each.margin is not None]
    return text.percent(max(margins)) if margins else f"{max(each.gap or 0.0 for each in wide):.2f} nats"


def _finish(facts: Facts) -> Step | None:
    if facts.finished:
        return None
    missing = (
        f"{facts.planned - facts.spared - facts.done:,} trials are missing" if facts.planned else "trials are missing"
    )
    return Step(
        "Finish this run: the same command continues where it stopped.",
        f"{missing}.",
        "if the machine or its load has changed since, the two parts are not one measurement.",
    )


def _quiet(summary: Summary, draft: DraftResult, facts: Facts, trials: Sequence[Trial]) -> Step | None:
    """Where the target alone does not agree with itself, more prompts or another draft come later."""
    floor = summary.noise_floor
    counted = [trial for trial in trials if not trial.warmup]
    shared = sum(trial.disturbed for trial in counted)
    drifts = any(warning.code == "noise-floor" for warning in summary.warnings)
    within = floor is not None and abs(draft.speedup - facts.policy.min_speedup) < floor
    if floor is None or not (drifts or (within and shared > _SHARED * len(counted))):
        return None
    also = f", and {text.out_of(shared, len(counted))} trials shared the machine with other processes" if shared else ""
    return Step(
        "Run it again with nothing else on the machine.",
        f"measured twice, the target alone lies up to {text.percent(floor)} from itself{also}: what a draft does "
        f"drowns in that.",
        "if the machine that serves you is as busy, this is what its users see.",
    )


def _more_prompts(draft: DraftResult, facts: Facts) -> Step | None:
    work, n = facts.workload, best_row(draft).prompts
    measured = Interval(draft.speedup, draft.speedup_low, draft.speedup_high, facts.policy.confidence, n)
    needed = prompts_to_settle(measured, facts.policy) if draft.verdict == "UNCLEAR" else None
    if needed is None or needed > _AFFORDABLE * n:
        return None
    if draft.probability is not None and draft.probability >= facts.policy.confidence:
        return _more_for_the_slow(draft, facts, n)
    if facts.policy.mix:
        # How many of the prompts that are left belong to the mix is not recorded.
        names = text.join(text.escape(name) for name in facts.policy.mix)
        do = f"Measure about {max(needed - n, 1):,} more prompts of {names}: {n:,} have been."
    elif work.available is not None and work.used is not None and work.available > work.used:
        short = needed - work.available
        more = f", and add about {short:,} more" if short > 0 else ""
        do = f"Measure all {work.available:,} prompts of the workload, not {work.used:,}{more}."
    else:
        do = f"Add about {max(needed - n, 1):,} prompts to the workload: its {n:,} have all been measured."
    asked = text.speedup(facts.policy.min_speedup)
    if draft.speedup_low is None:
        why = f"{text.count(n, 'prompt')} give no interval, and without one there can be no GO and no NO-GO."
    else:
        bounds = text.interval(draft.speedup_low, draft.speedup_high)
        about = f"about {needed:,} prompts in all would settle it {mark('extrapolated', 'settle')}."
        why = f"{bounds} leaves {asked} open; {about}"
    if any(category.verdict != draft.verdict for category in draft.categories):
        doubt = "the categories differ, so more prompts sharpen a mean that describes none of them."
    else:
        doubt = f"the {text.speedup(draft.speedup)} of so few prompts may move, and near {asked} it takes many more."
    return Step(do, why, doubt)


def _more_for_the_slow(draft: DraftResult, facts: Facts, n: int) -> Step:
    """The speedup is settled, and whether too many prompts get slower is not."""
    policy = facts.policy
    return Step(
        f"Measure more prompts than these {n:,}, several times as many.",
        f"{text.percent(draft.slower_share)} of them ran below {text.speedup(policy.slower_than)}, where at most "
        f"{text.percent(policy.max_slower_share)} may, and so few do not show whether that is chance.",
        "single prompts are timed less surely than their sum, so noise alone makes some of them slower.",
    )


def _larger_gamma(draft: DraftResult, found: Cost) -> Step | None:
    """Worth trying where the best gamma is the largest and even its last token's survival would pay one more."""
    row = found.row
    last = row.survival[-1] if row.survival else None
    if row.gamma != max(r.gamma for r in draft.gammas) or last is None:
        return None
    extra_s = (found.times.draft_s + found.extra_verify_s) / row.gamma
    if last / found.tau <= extra_s / found.round_s:
        return None
    others = f"Sweep gamma, of which only {row.gamma} was measured: `specbench sweep --gamma 1..{row.gamma * 2}`."
    above = f"Try gamma above {row.gamma}, the largest measured: `--gamma {row.gamma}..{row.gamma * 2}`."
    return Step(
        others if len(draft.gammas) == 1 else above,
        f"the last drafted token still survives in {text.percent(last)} of rounds, and one more would cost about "
        f"{text.milliseconds(extra_s)} of a {text.milliseconds(found.round_s)} round "
        f"{mark('predicted', 'another round')}.",
        "each further token survives less often than the one before, so the gain may end at once.",
    )


def _by_category(draft: DraftResult) -> Step | None:
    categories = by_speedup(draft)
    verdicts = {category.verdict for category in categories}
    if not {"GO", "NO-GO"} <= verdicts:
        return None
    smallest = min(categories, key=lambda category: (category.prompts, category.category))
    best = next(category for category in categories if category.verdict == "GO")
    worst = next(category for category in reversed(categories) if category.verdict == "NO-GO")
    return Step(
        f"Turn {text.code(draft.draft)} on by category, as the verdicts by category say.",
        f"{text.escape(best.category)} is a GO at {text.speedup(best.speedup)} and {text.escape(worst.category)} a "
        f"NO-GO at {text.speedup(worst.speedup)}.",
        f"it needs requests whose category is known before they run, and {text.escape(smallest.category)} rests on "
        f"{text.count(smallest.prompts, 'prompt')}.",
    )


def _limit(found: Cost, summary: Summary) -> Step:
    row, times, tau = found.row, found.times, found.tau
    if found.limit == "acceptance":
        return Step(
            "Try a draft that agrees with the target more: a larger one, or one trained on this traffic.",
            f"{text.percent(row.acceptance_rate)} of drafted tokens were accepted, {tau:.2f} tokens per round.",
            f"a larger draft costs more than the {text.milliseconds(times.draft_s)} that a round now drafts.",
        )
    if found.limit == "drafting":
        free = tau * found.step_s / (times.verify_s + times.other_s)
        tried = any(looks_up(each) for each in summary.drafts)
        return Step(
            "Try a cheaper draft: a smaller model"
            + (" than this one." if tried else ", or n-gram look-up where the engine has it."),
            f"drafting is {text.percent(times.draft_s / found.round_s)} of a round; for free, with the same "
            f"acceptance, it would give {text.speedup(free)} {mark('predicted', 'what if')}.",
            f"a cheaper draft is accepted less often, and tokens per round have to stay above "
            f"{(times.verify_s + times.other_s) / found.step_s:.2f} even if it costs nothing.",
        )
    if found.limit == "verifying":
        return Step(
            "Measure where verifying several tokens costs about as much as one: other kernels, precision or hardware.",
            f"verifying {row.gamma + 1} tokens takes {times.verify_s / found.step_s:.2f} target steps here.",
            "a faster verify often comes with a faster single step, and then the ratio stays.",
        )
    return Step(
        "Measure in a serving engine, whose loop around the models is leaner.",
        f"{text.milliseconds(times.other_s)} of a {text.milliseconds(found.round_s)} round is spent outside "
        "both models.",
        "the target alone gets faster there as well, so the ratio may not improve.",
    )


def _engine(draft: DraftResult, found: Cost, facts: Facts) -> Step:
    tau, asked = found.tau, facts.policy.min_speedup
    do = "Confirm it in the engine that serves your traffic, at its usual load, before switching it on."
    if draft.verdict != "GO":
        do = "Before giving it up, measure the time of a round in the engine that serves your traffic."
    return Step(
        do,
        f"with {tau:.2f} tokens per round, {text.speedup(asked)} takes rounds of at most {tau / asked:.2f} target "
        f"steps; here they cost {found.steps:.2f}.",
        "at larger batches the target has less idle capacity, so verifying costs more and the gain shrinks."
        if draft.verdict == "GO"
        else "an engine with a faster target step makes the same draft dearer in comparison.",
    )
