"""What to do next, picked from a run's own numbers: each step a Finding whose values are the numbers that suggest it,
and whose hint is the command where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from specbench.analysis.cautions import note
from specbench.analysis.contract import DraftResult, GammaResult, RoundTime, Summary
from specbench.analysis.facts import changed_command
from specbench.decision.verdict import AFFORDABLE
from specbench.drafters import parse_draft
from specbench.records import Call, Finding, Policy

Limit = Literal["acceptance", "drafting", "verifying", "the rest"]

# Below this many target steps of extra round time, cheaper rounds can hardly help.
NEAR_FLOOR = 0.15


@dataclass(frozen=True, slots=True)
class Cost:
    """One round at `row`'s gamma. `times` are its parts and `tau` its tokens; `step_s` is the target alone, seconds per
    token; `limit` is the term that holds the speedup back most."""

    row: GammaResult
    times: RoundTime
    tau: float
    step_s: float
    limit: Limit

    @property
    def round_s(self) -> float:
        return self.times.total_s

    @property
    def steps(self) -> float:
        """Round time in target steps: also the tokens per round needed to break even."""
        return self.round_s / self.step_s

    @property
    def extra(self) -> dict[Limit, float]:
        """Seconds of a round beyond one target step, by term."""
        return {
            "drafting": self.times.draft_s,
            "verifying": max(0.0, self.times.verify_s - self.step_s),
            "the rest": self.times.other_s,
        }

    @property
    def extra_s(self) -> float:
        return sum(self.extra.values())

    @property
    def near_floor(self) -> bool:
        """Whether a round costs little more than a step of the target."""
        return self.extra_s < NEAR_FLOOR * self.step_s

    @property
    def if_perfect(self) -> dict[str, float]:
        """The speedup of decoding with one term made perfect and the others as measured."""
        times, tau, step = self.times, self.tau, self.step_s
        verify_s = min(times.verify_s, step)
        return {
            "drafting": tau * step / (times.verify_s + times.other_s),
            "verifying": tau * step / (times.draft_s + verify_s + times.other_s),
            "the rest": tau * step / (times.draft_s + times.verify_s),
            "acceptance": (self.row.gamma + 1) / self.steps,
        }

    @property
    def one_more_s(self) -> float:
        """What one more drafted token would take: the mean of those before it."""
        return (self.times.draft_s + self.extra["verifying"]) / self.row.gamma


def cost(draft: DraftResult, policy: Policy) -> Cost | None:
    """One round at the best gamma; None where no round was run, or none drafted, or its parts are not known.

    Acceptance is the limit where even rounds at the price of one step would miss the policy's minimum, or where
    they already cost little more than that; else it is the dearest term.
    """
    row = draft.best
    if row.tokens_per_round is None or row.round_time is None or row.drafted == 0:
        return None
    found = Cost(row, row.round_time, row.tokens_per_round, 1 / draft.baseline_tokens_per_s, "acceptance")
    if found.tau < policy.min_speedup or found.near_floor:
        return found
    return replace(found, limit=max(found.extra, key=lambda term: found.extra[term]))


# A machine shared in so many of the trials was not the machine that is asked about.
_SHARED = 0.25

# So many requests at once are far enough from the most that were measured to tell something new.
_MORE = 4


def next_steps(summary: Summary, most: int = 2) -> tuple[Finding, ...]:
    """The most useful next steps for the draft that was chosen; none without a measurement."""
    draft = summary.recommended
    if draft is None:
        return ()
    call = _call(summary, draft)
    found = cost(draft, summary.policy)
    order = [*_first(summary, draft), *_more_prompts(summary, draft), *_by_category(draft)]
    if summary.server is not None:
        order += _of_server(summary, draft)
    elif found is not None:
        improve = [*_larger_gamma(summary, draft, found), _limit(summary, found)]
        # A GO of our own loop switches nothing on: the engine that serves has to say it too.
        engine = list(_engine(call, found, summary))
        order += [*improve, *engine]
        if call == "GO":
            order = [*_first(summary, draft), *engine, *_by_category(draft), *improve]
    return tuple(order[:most])


def _minutes(summary: Summary, gammas: int | None = None, prompts: int | None = None) -> float | None:
    """How long the run takes again, at as many gammas or over so many prompts; None where its own time is not known."""
    if summary.pace is None:
        return None
    arms = 2 + sum(len(draft.gammas) + len(draft.stopped) for draft in summary.drafts)
    more = 1.0 if gammas is None else (2 + gammas * len(summary.drafts)) / arms
    used = summary.facts.workload.used or 0 if prompts is None else prompts
    return summary.pace.minutes(-(-used // summary.batch_size)) * more


def _call(summary: Summary, draft: DraftResult) -> Call:
    return draft.verdict if summary.choice is None else summary.choice.verdict


def _first(summary: Summary, draft: DraftResult) -> Iterator[Finding]:
    """What comes before anything else: a bug, a run that is not whole, a machine that disagrees with itself."""
    facts, texts = summary.facts, draft.texts
    if texts is not None and texts.wide:
        yield note(
            "texts-differ",
            texts=texts.wide,
            margin=texts.margin,
            gap=texts.gap,
            precision=facts.precision,
            served=facts.served,
        )
    if draft.best.drafted == 0:
        yield note("never-drafts", draft=draft.draft)
    if not facts.finished:
        missing = None if facts.planned is None else facts.planned - facts.spared - facts.done
        yield note("finish", missing=missing)
    floor, shared = summary.noise_floor, summary.trials_disturbed
    drifts = any(warning.code == "noise-floor" for warning in summary.warnings)
    within = floor is not None and abs(draft.speedup - summary.policy.min_speedup) < floor
    counted = max(summary.trials_run, 1)
    if floor is not None and (drifts or (within and shared > _SHARED * counted)):
        yield note(
            "quiet",
            changed_command(facts),
            floor=floor,
            shared=shared,
            trials=summary.trials_run,
            minutes=_minutes(summary),
        )


def _more_prompts(summary: Summary, draft: DraftResult) -> Iterator[Finding]:
    """Where the verdict is open: how many prompts would settle it, as its own reason counts them."""
    policy, work, head, batch = summary.policy, summary.facts.workload, summary.choice or draft, summary.batch_size
    codes = {reason.code: reason.values for reason in head.reasons}
    n = draft.best.prompts if summary.choice is None else summary.choice.prompts
    if head.verdict != "UNCLEAR":
        return
    if "slower-prompts" in codes:
        yield note("slow-prompts", **{**codes["slower-prompts"], "prompts": n, "batch": batch})
        return
    missing = codes.get("more-prompts") or codes.get("too-few-prompts")
    if missing is None or missing["needed"] > AFFORDABLE * n:
        return
    needed = int(missing["needed"]) * batch
    left = None if policy.mix or work.available is None or work.used is None else work.available - work.used
    # How many of the prompts that are left belong to a mix is not recorded.
    asked = min(needed, work.available or needed) if left else needed
    yield note(
        "more-prompts",
        changed_command(summary.facts, limit=str(asked)) if left and summary.facts.argv else "",
        prompts=n * batch,
        needed=needed,
        more=max(needed - n * batch, 1),
        asked=asked,
        batch=batch,
        available=work.available if left else None,
        categories=list(policy.mix) if policy.mix else [],
        low=head.speedup_low,
        high=head.speedup_high,
        minimum=policy.min_speedup,
        mixed=any(category.verdict != head.verdict for category in draft.categories),
        minutes=_minutes(summary, prompts=asked),
    )


def _by_category(draft: DraftResult) -> Iterator[Finding]:
    categories = draft.by_speedup
    if not {"GO", "NO-GO"} <= {category.verdict for category in categories}:
        return
    smallest = min(categories, key=lambda category: (category.prompts, category.category))
    best = next(category for category in categories if category.verdict == "GO")
    worst = next(category for category in reversed(categories) if category.verdict == "NO-GO")
    yield note(
        "by-category",
        draft=draft.draft,
        best=(best.category, best.speedup),
        worst=(worst.category, worst.speedup),
        smallest=(smallest.category, smallest.prompts),
    )


def _larger_gamma(summary: Summary, draft: DraftResult, found: Cost) -> Iterator[Finding]:
    """Worth trying where the best gamma is the largest and even its last token's survival would pay one more."""
    row, only = found.row, len(draft.gammas) == 1
    last = row.survival[-1] if row.survival else None
    if row.gamma != max(r.gamma for r in draft.gammas) or last is None:
        return
    if last / found.tau <= found.one_more_s / found.round_s:
        return
    yield note(
        "larger-gamma",
        changed_command(summary.facts, gamma=f"{1 if only else row.gamma}..{row.gamma * 2}"),
        minutes=_minutes(summary, row.gamma * 2 if only else row.gamma + 1),
        gamma=row.gamma,
        only=only,
        survival=last,
        extra_s=found.one_more_s,
        round_s=found.round_s,
    )


def _limit(summary: Summary, found: Cost) -> Finding:
    row, times, tau = found.row, found.times, found.tau
    # What the step gives at most, all else as measured, and what was asked for.
    bounds: dict[str, Any] = {"most": found.if_perfect[found.limit], "minimum": summary.policy.min_speedup}
    if found.limit == "acceptance":
        return note("agree-more", rate=row.acceptance_rate, tau=tau, draft_s=times.draft_s, **bounds)
    if found.limit == "drafting":
        return note(
            "cheaper-draft",
            tried=any(looks_up(each.draft) for each in summary.drafts),
            share=times.draft_s / found.round_s,
            least=(times.verify_s + times.other_s) / found.step_s,
            **bounds,
        )
    if found.limit == "verifying":
        return note("cheaper-verify", tokens=row.gamma + 1, steps=times.verify_s / found.step_s, **bounds)
    return note("leaner-loop", other_s=times.other_s, round_s=found.round_s, **bounds)


def _engine(call: Call, found: Cost, summary: Summary) -> Iterator[Finding]:
    """Of no use where even a round at the price of one step gives less than is asked for."""
    asked, code = summary.policy.min_speedup, "confirm-on-engine" if call == "GO" else "measure-on-engine"
    if call == "GO" or found.tau >= asked:
        yield note(code, tau=found.tau, minimum=asked, most=found.tau / asked, steps=found.steps)


def looks_up(draft: str) -> bool:
    """Whether nothing but a look-up drafts."""
    spec = parse_draft(draft)
    return spec.look_up and spec.alone


def _of_server(summary: Summary, draft: DraftResult) -> list[Finding]:
    """From outside, without the parts of a round's time: at least two, the most useful first."""
    gamma, load = list(_other_gamma(summary, draft)), _load(summary, draft)
    if draft.best.drafted == 0:  # what its rounds cost is not what a draft costs
        return [load]
    about = [*_acceptance(summary, draft), note("another-engine", steps=draft.best.round_steps)]
    call = _call(summary, draft)
    if call != "GO":
        return [*gamma, *about, load]
    at, first = draft.stops_paying_at_concurrency, summary.facts.loads[0].label
    above = [] if at is None else [note("off-above", draft=draft.draft, at=at, load=first)]
    more = [load, *gamma] if len(summary.facts.loads) == 1 else [*gamma, load]
    return [*above, *more, *about]


def _load(summary: Summary, draft: DraftResult) -> Finding:
    loads = summary.facts.loads
    counts = sorted({load.concurrency for load in loads if load.rate is None})
    most = counts[-1] if counts else 1
    more = ",".join(str(count) for count in sorted({1, most, most * _MORE}))
    command = changed_command(summary.facts, concurrency=more)
    return note("your-load", command, go=_call(summary, draft) == "GO", loads=[load.label for load in loads])


def _other_gamma(summary: Summary, draft: DraftResult) -> Iterator[Finding]:
    """Worth trying where the best gamma is at an end of those measured."""
    row, gammas = draft.best, [each.gamma for each in draft.gammas]
    above = row.gamma == max(gammas) and (len(gammas) > 1 or row.speedup > 1)
    if not above and (row.gamma != min(gammas) or row.gamma == 1):
        return
    yield note(
        "gamma-above" if above else "gamma-below",
        changed_command(summary.facts, gamma=f"{row.gamma}..{row.gamma * 2}" if above else f"1..{row.gamma}"),
        gamma=row.gamma,
        speedup=row.speedup,
        minutes=_minutes(summary, row.gamma + above),
    )


def _acceptance(summary: Summary, draft: DraftResult) -> Iterator[Finding]:
    row, asked = draft.best, summary.policy.min_speedup
    tau, steps = row.tokens_per_round, row.round_steps
    if tau is None or steps is None or _call(summary, draft) == "GO":
        return
    if looks_up(draft.draft):
        yield note("longer-look-up", tokens=row.gamma + 1, steps=steps, tau=tau)
    elif tau < asked:
        yield note("agree-more-served", tau=tau, minimum=asked, most=(row.gamma + 1) / steps)
    else:
        tried = any(looks_up(each.draft) for each in summary.drafts)
        bounds: dict[str, Any] = {"minimum": asked, "most": tau / asked, "right": (row.gamma + 1) / steps}
        yield note("cheaper-or-agreeing", tried=tried, tau=tau, steps=steps, **bounds)
