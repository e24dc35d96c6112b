"""A server under every load of a run: speedup, throughput and latency against the target alone under the same load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specbench.acceptance.replay import Text
from specbench.analysis.cautions import warning
from specbench.analysis.contract import DraftResult, Money
from specbench.analysis.frame import ArmRows, DraftView, a_a, by_arm
from specbench.analysis.predict import Predictor
from specbench.analysis.results import Judged
from specbench.analysis.served import LoadResult, Percentiles, Schedule, ScheduleStep
from specbench.decision.interval import MIN_PROMPTS, Floats, Paired, ends, excess_variance, speedup_interval
from specbench.decision.verdict import judge
from specbench.records import Arm, Finding, Interval, Load, Policy, Trial
from specbench.run_record import ModelFacts
from specbench.store import StoredRun

# So many requests show a percentile: one of them lies beyond it.
_NEEDED = {50: 2, 95: 20, 99: 100}


def load_results(stored: StoredRun, policy: Policy, texts: Sequence[Text] = ()) -> tuple[LoadResult, ...]:
    """One for each load, draft and gamma that was measured beside the target alone, in the order of the run."""
    found: list[LoadResult] = []
    for load in stored.loads:
        trials = stored.at_load(load)
        arms = by_arm(trials)
        if not any(arm.kind == "baseline" for arm in arms):
            continue
        for spec in stored.run.config.draft:
            view = DraftView(arms, spec, trials, texts, stored, policy)
            if view.complete:
                judged = Judged(view, policy, None, stored.run.drafts.get(spec, ModelFacts()))
                found += [_at(stored, load, judged, gamma, arms) for gamma in view.arms]
    return tuple(found)


def _at(stored: StoredRun, load: Load, judged: Judged, gamma: int, arms: Mapping[Arm, ArmRows]) -> LoadResult:
    view, policy = judged.view, judged.policy
    pairs = {metric: view.paired(gamma, metric) for metric in ("decode", "e2e")}
    # The target alone under this load against itself says how far two equal arms lie apart here.
    found = {metric: _interval(pairs[metric], a_a(arms, metric, policy.mix), policy) for metric in pairs}
    verdict = judge(found[policy.metric], policy, judged.with_slower(pairs[policy.metric]))
    alone = throughput(stored, Arm("baseline", load=load))
    with_draft = throughput(stored, Arm("speculative", view.spec, gamma, load))
    base, spec = ([trial for trials in rows.trials for trial in trials] for rows in (view.base, view.arms[gamma]))
    return LoadResult(
        load=load.label,
        concurrency=load.concurrency if load.rate is None else None,
        rate=load.rate,
        draft=view.spec,
        gamma=gamma,
        prompts=len(view.prompts),
        verdict=verdict.call,
        reasons=verdict.reasons,
        **ends("speedup", found["decode"]),
        **ends("speedup_e2e", found["e2e"]),
        baseline_throughput=alone,
        throughput=with_draft,
        throughput_ratio=with_draft / alone if with_draft is not None and alone else None,
        baseline_ttft=percentiles(first_s for trial in base for first_s in trial.first_s),
        ttft=percentiles(first_s for trial in spec for first_s in trial.first_s),
        baseline_tpot=percentiles(_per_token(base)),
        tpot=percentiles(_per_token(spec)),
        **ends("predicted_speedup", judged.predictor.interval(gamma)),
    )


# From so much on the time to the first token is another, and decoding does not tell of whole answers.
MOVED, TOLD = 1.25, 1.10


def load_cautions(rows: Iterable[LoadResult], policy: Policy) -> Iterator[Finding]:
    """`first-token-moved`: where requests overlap, one waits while the prompt of another is read, for its first token
    or between two later ones. Arms in which that falls out differently are not told apart by decoding."""
    if policy.metric != "decode":
        return
    moved: list[dict[str, Any]] = [
        {
            "load": row.load,
            "draft": row.draft,
            "gamma": row.gamma,
            "baseline_first_s": alone_s,
            "first_s": first_s,
            "speedup": row.speedup,
            "speedup_e2e": row.speedup_e2e,
        }
        for row in rows
        if (row.concurrency or 0) != 1 and row.prompts >= MIN_PROMPTS
        if (alone_s := row.baseline_ttft.p50) and (first_s := row.ttft.p50)
        if _apart(first_s, alone_s, MOVED) and _apart(row.speedup_e2e, row.speedup, TOLD)
    ]
    if moved:
        moved.sort(key=lambda row: abs(math.log(row["speedup_e2e"] / row["speedup"])), reverse=True)
        yield warning("first-token-moved", "Judge loads by whole answers: brief --metric e2e.", rows=moved)


def _apart(one: float, other: float, factor: float) -> bool:
    return max(one, other) > factor * min(one, other)


def _interval(paired: Paired, again: Paired | None, policy: Policy) -> Interval:
    return speedup_interval(paired, policy.confidence, 0.0 if again is None else excess_variance(again))


def _per_token(trials: Sequence[Trial]) -> list[float]:
    """Seconds per output token after the first, request by request (of a conversation turn by turn): never the gaps
    between chunks, of which one may carry a whole round."""
    spent: list[tuple[float, int]] = []
    for trial in trials:
        turns = [(turn.last_s - turn.first_s, turn.output_tokens - 1) for turn in trial.turns]
        spent += turns or [(trial.times.decode_s, trial.decode_tokens)]
    return [seconds / tokens for seconds, tokens in spent if tokens > 0]


def percentiles(seconds: Iterable[float]) -> Percentiles:
    """Interpolated between neighbours; one that so few requests cannot show is None."""
    values = np.array(list(seconds), dtype=float)
    shown = (float(np.percentile(values, at)) if len(values) >= needed else None for at, needed in _NEEDED.items())
    return Percentiles(len(values), *shown)


def throughput(stored: StoredRun, arm: Arm) -> float | None:
    """Output tokens per second of an arm. In a closed loop every client is always waiting for an answer, so it is the
    clients' number times the tokens of a second of waiting (Little's law), whatever requests kept up the load beside
    the counted ones; in an open loop tokens over the wall clock of the stretches, None where that was not kept."""
    trials = [trial for trial in stored.trials if trial.arm == arm and trial.stretch is not None]
    tokens = sum(trial.output_tokens for trial in trials)
    if arm.load.rate is None:
        seconds = sum(trial.times.total_s for trial in trials) / arm.load.concurrency
    else:
        seconds = sum(stretch.wall_s for stretch in stored.stretches if stretch.arm == arm)
    return tokens / seconds if seconds else None


def metric_of(row: LoadResult, policy: Policy) -> tuple[float, float | None, float | None]:
    """The speedup that the policy asks for, with the ends of its interval."""
    if policy.metric == "e2e":
        return row.speedup_e2e, row.speedup_e2e_low, row.speedup_e2e_high
    return row.speedup, row.speedup_low, row.speedup_high


def best_by_concurrency(rows: Iterable[LoadResult], draft: str, policy: Policy) -> dict[int, LoadResult]:
    """The fastest gamma of one draft at every concurrency, ascending."""
    found: dict[int, LoadResult] = {}
    for row in sorted(rows, key=lambda row: metric_of(row, policy)[0], reverse=True):
        if row.draft == draft and row.concurrency is not None:
            found.setdefault(row.concurrency, row)
    return dict(sorted(found.items()))


def stops_paying_at(rows: Iterable[LoadResult], draft: str, policy: Policy) -> int | None:
    """The smallest measured concurrency from which on even the best gamma is slower than the target alone."""
    below = None
    for concurrency, row in reversed(best_by_concurrency(rows, draft, policy).items()):
        if metric_of(row, policy)[0] >= 1.0:
            break
        below = concurrency
    return below


def with_loads(draft: DraftResult, rows: Sequence[LoadResult], policy: Policy) -> DraftResult:
    """A draft's result with what the loads add to it. Where requests overlap at the first load, a token's price comes
    from throughput."""
    own = [row for row in rows if row.draft == draft.draft]
    money = draft.money
    if policy.price_per_hour is not None and money is None:
        first = next((row for row in own if row.load == own[0].load and row.gamma == draft.best_gamma), None)
        money = None if first is None else _money(first, policy.price_per_hour)
    return replace(draft, stops_paying_at_concurrency=stops_paying_at(own, draft.draft, policy), money=money)


def _money(row: LoadResult, price_per_hour: float) -> Money | None:
    if not row.baseline_throughput or not row.throughput:
        return None
    per_second = price_per_hour / 3600 * 1e6
    return Money(per_second / row.baseline_throughput, per_second / row.throughput)


RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Cell:
    """One gamma at one concurrency, over prompts in one order. `variance` is of the log of its speedup, beyond that
    over prompts."""

    paired: Paired
    measured: bool
    variance: float = 0.0


def schedule_of(stored: StoredRun, spec: str, policy: Policy, texts: Sequence[Text]) -> Schedule | None:
    """Of one draft over every concurrency that was measured or probed; what was measured goes before what is predicted.
    None with fewer than two of them, or too few prompts."""
    loads = {load.concurrency: load for load in stored.run.config.loads if load.rate is None}
    found: dict[int, dict[int, Cell]] = {}
    prompts: list[str] | None = None
    for clients in sorted({*loads, *(p.batch for p in stored.run.probe or () if p.phase == "round")}):
        load = loads.get(clients, next(iter(loads.values()), Load()))
        trials = stored.at_load(load)
        view = DraftView(by_arm(trials), spec, trials, texts, stored, policy)
        if not view.complete or (prompts is not None and list(view.prompts) != prompts):
            continue
        prompts = list(view.prompts)
        found[clients] = _cells(view, policy, clients, measured=clients in loads)
    return best_schedule(found, policy.confidence)


def _cells(view: DraftView, policy: Policy, clients: int, *, measured: bool) -> dict[int, Cell]:
    cells: dict[int, Cell] = {}
    predictor = Predictor(view, policy.confidence)
    if policy.metric == "decode":  # what a prediction is about
        rounds = [p.tokens for p in view.points if (p.phase, p.batch) == ("round", clients)]
        for gamma in range(1, max(rounds, default=1)):
            if (paired := predictor.paired(gamma, clients)) is not None:
                cells[gamma] = Cell(paired, measured=False, variance=predictor.variance(gamma, clients))
    if measured:
        cells |= {gamma: Cell(view.paired(gamma, policy.metric), measured=True) for gamma in view.arms}
    return cells


def best_schedule(cells: Mapping[int, Mapping[int, Cell]], confidence: float) -> Schedule | None:
    """`cells` by concurrency and gamma. All concurrencies count alike, each by the target's own time there: the gain is
    of the whole time when each has as much to do. It is cross-fitted, as a gamma that is chosen on the prompts by which
    it is then judged looks better than it is; its interval is over resampled prompts, chosen anew in each."""
    counts = sorted(cells)
    if len(counts) < 2:
        return None
    gammas = sorted(set.intersection(*({*cells[count]} for count in counts)))
    if not gammas:
        return None
    n = next(iter(cells[counts[0]].values())).paired.n
    if n < 2 * MIN_PROMPTS:
        return None
    rng = np.random.default_rng(0)
    halves = np.array_split(rng.permutation(n), 2)
    if not all(cells[c][gamma].paired.take(half).decoded for c in counts for gamma in gammas for half in halves):
        return None
    ones = [np.ones((1, len(half))) for half in halves]
    drawn = [rng.multinomial(len(half), np.full(len(half), 1 / len(half)), size=RESAMPLES) for half in halves]
    whole = _speedups(cells, counts, gammas, np.arange(n), np.ones((1, n)))[0]
    value = float(_gains([_speedups(cells, counts, gammas, half, w) for half, w in zip(halves, ones, strict=True)])[0])
    sampled = [_speedups(cells, counts, gammas, half, w) for half, w in zip(halves, drawn, strict=True)]
    noise = np.sqrt([[0.0, *(cells[count][gamma].variance for gamma in gammas)] for count in counts])
    factors = np.exp(rng.normal(0, 1, (RESAMPLES, *noise.shape)) * noise)  # one for both halves: costs are shared
    gains = _gains([each * factors for each in sampled])
    low, high = np.nanquantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
    known = (0, *gammas)
    best = whole.argmax(1)
    steps = []
    for row, count in enumerate(counts):
        gamma = known[best[row]]
        measured = gamma == 0 or cells[count][gamma].measured
        steps.append(ScheduleStep(count, gamma, float(whole[row, best[row]]), measured))
    fixed = known[int((1 / whole).sum(0).argmin())]
    return Schedule(tuple(steps), fixed, value, float(low), float(high))


def _speedups(
    cells: Mapping[int, Mapping[int, Cell]],
    counts: Sequence[int],
    gammas: Sequence[int],
    rows: np.ndarray,
    weights: np.ndarray,
) -> Floats:
    """[resamples, loads, 1 + gammas] over some prompts, each weighed as in a row of `weights`; 1 without a draft."""
    found = np.ones((len(weights), len(counts), 1 + len(gammas)))
    for row, count in enumerate(counts):
        for column, gamma in enumerate(gammas, 1):
            p = cells[count][gamma].paired
            with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which nothing was decoded is NaN
                base = (weights @ p.base_s[rows]) / (weights @ p.base_tokens[rows])
                found[:, row, column] = base / ((weights @ p.spec_s[rows]) / (weights @ p.spec_tokens[rows]))
    return found


def _gains(halves: Sequence[Floats]) -> Floats:
    """What the schedule that is best on one half gains on the other, over the single gamma that is best on the one
    [resamples]."""
    fixed_s, schedule_s = np.zeros(len(halves[0])), np.zeros(len(halves[0]))
    for chosen_on, judged_on in (halves, halves[::-1]):
        cost = 1 / judged_on  # of a token, in units of the target alone
        single = (1 / chosen_on).sum(1).argmin(1)
        fixed_s += np.take_along_axis(cost.sum(1), single[:, None], 1)[:, 0]
        each = chosen_on.argmax(2)
        schedule_s += np.take_along_axis(cost, each[:, :, None], 2)[:, :, 0].sum(1)
    return np.asarray(fixed_s / schedule_s - 1, dtype=np.float64)
