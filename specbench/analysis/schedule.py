"""How many tokens to draft at which load: the best gamma at every concurrency, 0 among them, and what it gains over the
best single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specbench.acceptance.replay import Text
from specbench.analysis.contract import Schedule, ScheduleStep
from specbench.analysis.frame import at_load, by_arm
from specbench.analysis.predict import Predictor
from specbench.analysis.views import DraftView
from specbench.decision.interval import MIN_PROMPTS, Floats, Paired
from specbench.records import Load, Policy
from specbench.store import StoredRun

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
        trials = at_load(stored.trials, load)
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
        for gamma in range(
            1, max((p.tokens for p in view.points if (p.phase, p.batch) == ("round", clients)), default=1)
        ):
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
    ones = [np.ones((1, len(half))) for half in halves]
    drawn = [rng.multinomial(len(half), np.full(len(half), 1 / len(half)), size=RESAMPLES) for half in halves]
    whole = _speedups(cells, counts, gammas, np.arange(n), np.ones((1, n)))[0]
    value = float(_gains([_speedups(cells, counts, gammas, half, w) for half, w in zip(halves, ones, strict=True)])[0])
    sampled = [_speedups(cells, counts, gammas, half, w) for half, w in zip(halves, drawn, strict=True)]
    noise = np.sqrt([[0.0, *(cells[count][gamma].variance for gamma in gammas)] for count in counts])
    factors = np.exp(rng.normal(0, 1, (RESAMPLES, *noise.shape)) * noise)  # one for both halves: costs are shared
    gains = _gains([each * factors for each in sampled])
    low, high = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
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
