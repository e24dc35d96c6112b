"""What each figure shows, and where a round's time goes, as sentences made from the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specbench import text
from specbench.analysis.contract import DraftResult, GammaResult, LoadResult, RoundTime, Summary
from specbench.analysis.facts import Facts
from specbench.analysis.loads import best_by_concurrency, metric_of
from specbench.records import Policy
from specbench.report.templating import mark
from specbench.report.wording import best_row, by_speedup

Limit = Literal["acceptance", "drafting", "verifying", "the rest"]

# Below this many target steps of extra round time, cheaper rounds can hardly help.
_NEAR_FLOOR = 0.15


@dataclass(frozen=True, slots=True)
class Cost:
    """One round at `row`'s gamma, in units of the target's own step. `times` are its parts and `tau` its tokens per
    round; `step_s` is the target alone, seconds per token; `extra_*` is what a round costs beyond one step, by term;
    `limit` is the term that holds the speedup back most."""

    row: GammaResult
    times: RoundTime
    tau: float
    step_s: float
    round_s: float
    extra_draft_s: float
    extra_verify_s: float
    extra_other_s: float
    limit: Limit

    @property
    def steps(self) -> float:
        """Round time in target steps: also the tokens per round needed to break even."""
        return self.round_s / self.step_s

    @property
    def extra_s(self) -> float:
        return self.extra_draft_s + self.extra_verify_s + self.extra_other_s


def cost(draft: DraftResult, policy: Policy) -> Cost | None:
    """Break one round at the best gamma into its terms; None where no round was run, or its parts are not known.

    Acceptance is the limit where even rounds at the price of one step would miss the policy's minimum, or where
    they already cost little more than that; else it is the dearest term.
    """
    row = best_row(draft)
    times, tau = row.round_time, row.tokens_per_round
    if tau is None or times is None:
        return None
    step = 1 / draft.baseline_tokens_per_s
    extras: dict[Limit, float] = {
        "drafting": times.draft_s,
        "verifying": max(0.0, times.verify_s - step),
        "the rest": times.other_s,
    }
    limit: Limit = max(extras, key=lambda term: extras[term])
    if tau < policy.min_speedup or sum(extras.values()) < _NEAR_FLOOR * step:
        limit = "acceptance"
    return Cost(row, times, tau, step, total(times), extras["drafting"], extras["verifying"], extras["the rest"], limit)


def total(times: RoundTime) -> float:
    """Seconds for one mean round."""
    return times.draft_s + times.verify_s + times.other_s


def whole_round(draft: DraftResult, facts: Facts) -> tuple[str, ...]:
    """A round against a step where its parts are not known, on a server; what cannot be said is said. () in process."""
    if not facts.served:
        return ()
    row = best_row(draft)
    tau, steps = row.tokens_per_round, row.round_steps
    if tau is None or steps is None or row.round_s is None:
        return ("The number of rounds is not known, so neither is what one costs: the server does not tell.",)
    lines = [
        f"At gamma {row.gamma} a round takes {text.milliseconds(row.round_s)}, the target alone "
        f"{text.milliseconds(1 / draft.baseline_tokens_per_s)} per token: a round costs {steps:.2f} target steps and "
        f"pays if it emits more than {steps:.2f} tokens. It emitted {tau:.2f} (all measured, from outside). How much "
        "of it is drafting and how much verifying is not known: the server does not tell."
    ]
    if tau < facts.policy.min_speedup:
        lines.append(
            f"**What limits it: acceptance.** Even if a round cost no more than one target step, {tau:.2f} tokens per "
            f"round could give at most {text.speedup(tau)} {mark('predicted', 'what if')}."
        )
    best = (row.gamma + 1) / steps
    lines.append(
        f"With every draft accepted and rounds as dear as these, it would be {text.speedup(best)} "
        f"{mark('predicted', 'what if')}."
    )
    return tuple(lines)


def round_time(found: Cost) -> str:
    """A round against a step: the arithmetic that the speedup comes from."""
    times, row = found.times, found.row
    parts = [
        f"{text.milliseconds(seconds)} {name} ({text.percent(seconds / found.round_s)})"
        for name, seconds in (
            ("drafting", times.draft_s),
            ("verifying", times.verify_s),
            ("on the rest", times.other_s),
        )
    ]
    return (
        f"At gamma {row.gamma} a round takes {text.milliseconds(found.round_s)}: {text.join(parts)}. The target alone "
        f"takes {text.milliseconds(found.step_s)} per token, so a round costs {found.steps:.2f} target steps and pays "
        f"if it emits more than {found.steps:.2f} tokens. It emitted {found.tau:.2f} (all measured)."
    )


def limiting(found: Cost) -> str:
    """Which term holds the speedup back, and the number that says so."""
    tau = found.tau
    if found.limit == "acceptance" and found.extra_s < _NEAR_FLOOR * found.step_s:
        return (
            "**What limits it: acceptance.** Rounds already cost little more than a target step, so only more accepted "
            f"tokens than {tau - 1:.2f} per round would make it much faster."
        )
    if found.limit == "acceptance":
        return (
            f"**What limits it: acceptance.** Even if a round cost no more than one target step, {tau:.2f} tokens per "
            f"round could give at most {text.speedup(tau)} {mark('predicted', 'what if')}."
        )
    term_s = {
        "drafting": found.extra_draft_s,
        "verifying": found.extra_verify_s,
        "the rest": found.extra_other_s,
    }[found.limit]
    name = {"the rest": "work outside the two models"}.get(found.limit, found.limit)
    return (
        f"**What limits it: {name}.** Of the {text.milliseconds(found.extra_s)} that a round costs beyond one target "
        f"step, {text.milliseconds(term_s)} is {name}."
    )


def ceilings(found: Cost) -> str:
    """The speedup if one term alone were perfect: what there is to win where."""
    times, tau = found.times, found.tau
    verify = min(times.verify_s, found.step_s)
    cases = (
        ("free drafting", tau * found.step_s / (times.verify_s + times.other_s)),
        ("verifying at the price of one step", tau * found.step_s / (times.draft_s + verify + times.other_s)),
        ("no work outside the models", tau * found.step_s / (times.draft_s + times.verify_s)),
        ("every draft accepted", (found.row.gamma + 1) / found.steps),
    )
    listed = text.join(f"{name} {text.speedup(value)}" for name, value in cases)
    with_one = "With one term made perfect and the others as measured, the speedup would be"
    return f"{with_one}: {listed} {mark('predicted', 'what if')}."


def read_speedup(draft: DraftResult, policy: Policy) -> str:
    """The speedup figure in one or two sentences."""
    rows = draft.gammas
    top = max(rows, key=lambda row: row.speedup)
    if len(rows) == 1:
        head = f"Gamma {top.gamma}, the only one measured, gives {_row_estimate(top)}."
    else:
        last = rows[-1]
        tail = "the largest measured" if top is last else f"and is {text.speedup(last.speedup)} at gamma {last.gamma}"
        above = sum(row.speedup_low is not None and row.speedup_low >= policy.min_speedup for row in rows)
        head = f"Speedup is highest at gamma {top.gamma}, {_row_estimate(top)}, {tail}."
        if any(row.speedup_low is not None for row in rows):
            whole = f"{above} of {len(rows)} intervals" if above else "No interval"
            head += f" {whole} {'lies' if above <= 1 else 'lie'} wholly above {text.speedup(policy.min_speedup)}."
    off = [(abs(row.predicted_speedup / row.speedup - 1), row.gamma) for row in rows if row.predicted_speedup]
    if not off:
        return head
    worst, gamma = max(off)
    where = f", at gamma {gamma}" if len(off) > 1 else ""
    miss = f"misses the measurement by at most {text.percent(worst)}{where}."
    return f"{head} The prediction {mark('predicted', 'curve')} {miss}"


def read_survival(draft: DraftResult) -> str:
    """The survival figure: first token, last token."""
    row = max((row for row in draft.gammas if row.survival), key=lambda row: row.gamma)
    first, last = row.survival[0], row.survival[-1]
    if first is None:
        return f"At gamma {row.gamma} no round drafted anything."
    if row.gamma == 1 or last is None:
        return f"At gamma {row.gamma} the first drafted token is accepted in {text.percent(first)} of rounds."
    return (
        f"At gamma {row.gamma} the first drafted token is accepted in {text.percent(first)} of rounds, the whole draft "
        f"in {text.percent(last)}."
    )


def read_round_time(draft: DraftResult) -> str:
    """The round-time figure: how the drafting share and the round grow."""
    rows = sorted(draft.gammas, key=lambda row: row.gamma)
    step = 1 / draft.baseline_tokens_per_s
    split = [(row, row.round_time) for row in rows if row.round_time is not None]
    first, last = split[0][0], split[-1][0]
    ends = (split[0][1], split[-1][1])
    share = [text.percent(times.draft_s / total(times)) for times in ends]
    steps = [total(times) / step for times in ends]
    if first is last:
        return f"A round at gamma {first.gamma} costs {steps[0]:.2f} target steps; drafting is {share[0]} of it."
    return (
        f"From gamma {first.gamma} to {last.gamma} a round goes from {steps[0]:.2f} to {steps[1]:.2f} target steps, "
        f"and drafting from {share[0]} to {share[1]} of it."
    )


def read_loads(summary: Summary, draft: DraftResult, policy: Policy) -> str:
    """The figure of loads: both ends, and from where on it stops paying."""
    rows = list(best_by_concurrency(summary.loads, draft.draft, policy).values())
    first, last = rows[0], rows[-1]
    ends = [text.estimate(*metric_of(row, policy)) for row in (first, last)]
    return (
        f"At {first.load} the best gamma gives {ends[0]}, at {last.load} {ends[1]}. "
        f"{stops_paying_words(summary, draft, policy)}"
    )


def stops_paying_words(summary: Summary, draft: DraftResult, policy: Policy) -> str:
    """From which concurrency on it costs more than it gives, and whether the interval says so too; empty where fewer
    than two were measured."""
    rows = best_by_concurrency(summary.loads, draft.draft, policy)
    if len(rows) < 2:
        return ""
    at = draft.stops_paying_at_concurrency
    if at is None:
        return f"It pays up to {max(rows)} at a time, the most measured" + _supported(rows[max(rows)], policy, 1) + "."
    head = "It pays at none of these" if at == min(rows) else f"It stops paying at {at} at a time"
    return head + _supported(rows[at], policy, -1) + "."


def _supported(row: LoadResult, policy: Policy, sign: int) -> str:
    """Whether the interval of the speedup lies wholly above (`sign` 1) or below 1.00x."""
    _, low, high = metric_of(row, policy)
    if low is None or high is None:
        return " (without an interval to support it)"
    holds = low > 1 if sign > 0 else high < 1
    return f" ({'the interval' if holds else 'but the interval'} {text.interval(low, high)} " + (
        "supports it)" if holds else "holds 1.00x, so this may be chance)"
    )


def read_categories(draft: DraftResult) -> str:
    """The category figure: the two ends, and whether their intervals tell them apart."""
    rows = by_speedup(draft)
    top, low = rows[0], rows[-1]
    if top is low:
        return f"One category: {text.escape(top.category)} at {text.speedup(top.speedup)}."
    head = (
        f"Best is {text.escape(top.category)} ({text.speedup(top.speedup)}), "
        f"worst {text.escape(low.category)} ({text.speedup(low.speedup)})"
    )
    if top.speedup_low is None or low.speedup_high is None:
        return f"{head}; too few prompts to say that they differ."
    if top.speedup_low > low.speedup_high:
        return f"{head}; their intervals do not overlap."
    return f"{head}; their intervals overlap, so the order may be chance."


def _row_estimate(row: GammaResult) -> str:
    return text.estimate(row.speedup, row.speedup_low, row.speedup_high)
