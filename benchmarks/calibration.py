"""Are the verdicts as sure as they say? Intervals and verdicts on fake traffic whose true speedup is planted.

For every planted speedup and number of prompts, many workloads are drawn and judged as a run would be, by the functions
that a run calls. Counted are: how often the 95 % interval holds the truth; GO where the truth is below the policy's
minimum; NO-GO where it is not; and UNCLEAR. Three questions: one fixed gamma, gamma chosen among three of which some
are better, and gamma chosen among three that are equally good, where flattery would show most.

The truth of a chosen gamma is the population speedup of the gamma that the choice advises, for that is what the user
will run. The gate on slow prompts is left out: it is policy and no statement about the speedup.

Regime: no clock and no model, seconds are drawn (benchmarks/fake_traffic.py says how). A full run writes its tables and
figure into docs/; a quick one writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import stats

from benchmarks.calibration_page import print_tables, write_page
from benchmarks.fake_traffic import Machine, Pool, Traffic, draw, make_pool
from specbench.decision.interval import RESAMPLES, Floats, Paired, choose_gamma, excess_variance, speedup_interval
from specbench.decision.verdict import Gates, judge
from specbench.records import Interval, Policy

SEED = 0
POLICY = Policy()
PROMPTS = (12, 30, 100)
# Planted speedup: mean acceptance of the draft that has about that speedup on this machine, so that planting the
# exact value changes little and a slow draft is slow because it is a poor one.
ACCEPTANCE = {0.95: 0.25, 1.05: 0.38, 1.09: 0.44, 1.10: 0.45, 1.15: 0.50, 1.25: 0.60}
FIXED_GAMMA = 2
METHODS_AT = 1.10
ARM_BIAS = 0.02
# 44 and 70 ms a step were seen in two probes one after the other, for seconds at a time.
SLOW, DWELL = 1.6, 2.0
# Workloads drawn at a time: 100 prompts in 5 arms are 2 MB a column.
PART = 500

Ask = Callable[[Traffic, int, Pool], tuple[float, Interval]]  # traffic, workload, population -> truth, interval
Limits = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Question:
    """How the truth is planted, and how a workload is judged."""

    plant: Callable[[Pool, float], Pool]
    ask: Ask


@dataclass(frozen=True, slots=True)
class Cell:
    """Counts over `workloads` workloads of `n` prompts. `width` is the median distance of the interval's ends over the
    planted speedup."""

    speedup: float
    n: int
    workloads: int
    covered: int
    wrong_go: int
    wrong_no_go: int
    unclear: int
    width: float


def ask_fixed(traffic: Traffic, workload: int, pool: Pool) -> tuple[float, Interval]:
    """One gamma, given beforehand."""
    interval = speedup_interval(traffic.at_gamma(workload, FIXED_GAMMA), POLICY.confidence)
    return pool.speedup(FIXED_GAMMA), interval


def ask_chosen(traffic: Traffic, workload: int, pool: Pool) -> tuple[float, Interval]:
    """The gamma that the choice advises, with the interval that a run reports for it."""
    choice = choose_gamma(traffic.by_gamma(workload))
    return pool.speedup(choice.best), speedup_interval(choice.paired, POLICY.confidence, choice.excess)


def ask_widened(traffic: Traffic, workload: int, pool: Pool) -> tuple[float, Interval]:
    """One gamma, its interval widened by what the A/A arm shows."""
    excess = excess_variance(traffic.again(workload))
    interval = speedup_interval(traffic.at_gamma(workload, FIXED_GAMMA), POLICY.confidence, excess)
    return pool.speedup(FIXED_GAMMA), interval


QUESTIONS: Mapping[str, Question] = {
    "fixed gamma": Question(lambda pool, speedup: pool.plant(speedup, FIXED_GAMMA), ask_fixed),
    "best of three gammas": Question(Pool.plant, ask_chosen),
    "three equal gammas": Question(Pool.plant_tie, ask_chosen),
}


def main(*, quick: bool = False) -> None:
    """Simulate and print. Full: 2,000 workloads a cell at the minimum, 400 elsewhere and for the comparison of methods.
    Quick: 100 and 20."""
    start_s = time.perf_counter()
    workloads, fewer = (100, 20) if quick else (2000, 400)
    sizes = [(s, n, workloads if s == POLICY.min_speedup else fewer) for s in ACCEPTANCE for n in PROMPTS]
    cells = {name: [cell(question, *size) for size in sizes] for name, question in asked()}
    methods = {n: method_hits(n, fewer) for n in PROMPTS}
    biased = {
        label: [cell(Question(QUESTIONS["fixed gamma"].plant, ask), METHODS_AT, n, workloads, machine) for n in PROMPTS]
        for label, ask, machine in (
            ("no bias, interval as it is", ask_fixed, Machine()),
            ("no bias, widened", ask_widened, Machine()),
            (f"bias of {ARM_BIAS:.0%}, interval as it is", ask_fixed, Machine(arm_bias=ARM_BIAS)),
            (f"bias of {ARM_BIAS:.0%}, widened", ask_widened, Machine(arm_bias=ARM_BIAS)),
            (
                f"bias of {ARM_BIAS:.0%} in each of four server starts",
                ask_widened,
                Machine(arm_bias=ARM_BIAS, starts=4),
            ),
            ("two speeds, whole trials", ask_widened, Machine(slow=SLOW, dwell=DWELL)),
            ("two speeds, slices", ask_widened, Machine(slow=SLOW, dwell=DWELL, sliced=True)),
        )
    }
    print_tables(cells, methods, biased, fewer)
    print(f"{workloads:,} workloads a cell, seed {SEED}, {time.perf_counter() - start_s:.0f} s")
    if not quick:
        write_page(cells, methods, biased, fewer, SEED)


def asked() -> Iterator[tuple[str, Question]]:
    yield from QUESTIONS.items()


@lru_cache(maxsize=8)
def population(speedup: float) -> Pool:
    """The prompts of a draft that has about this speedup."""
    return make_pool(ACCEPTANCE[speedup], SEED)


def measured(pool: Pool, n: int, workloads: int, machine: Machine | None = None) -> Iterator[tuple[Traffic, int]]:
    """Every workload as (traffic, its row in it), the same for every question with the same population."""
    rng = np.random.default_rng([SEED, n, round(1000 * pool.speedup(FIXED_GAMMA))])
    for begin in range(0, workloads, PART):
        rows = min(PART, workloads - begin)
        traffic = draw(pool, rows, n, rng, machine)
        yield from ((traffic, row) for row in range(rows))


def cell(question: Question, speedup: float, n: int, workloads: int, machine: Machine | None = None) -> Cell:
    """Judge `workloads` workloads of one planted speedup and one size."""
    pool = question.plant(population(speedup), speedup)
    covered = wrong_go = wrong_no_go = unclear = 0
    widths = []
    for traffic, row in measured(pool, n, workloads, machine):
        truth, interval = question.ask(traffic, row, pool)
        assert interval.low is not None and interval.high is not None
        call = judge(interval, POLICY, Gates()).call
        pays = truth >= POLICY.min_speedup - 1e-9  # planting is exact but for rounding
        covered += interval.low <= truth <= interval.high
        wrong_go += call == "GO" and not pays
        wrong_no_go += call == "NO-GO" and pays
        unclear += call == "UNCLEAR"
        widths.append((interval.high - interval.low) / speedup)
    return Cell(speedup, n, workloads, covered, wrong_go, wrong_no_go, unclear, float(np.median(widths)))


def method_hits(n: int, workloads: int) -> dict[str, tuple[int, float]]:
    """Per method: how many intervals hold the truth, and their median width over the truth. All see the same data."""
    pool = QUESTIONS["fixed gamma"].plant(population(METHODS_AT), METHODS_AT)
    found: dict[str, list[Limits]] = {name: [] for name in METHODS}
    for traffic, row in measured(pool, n, workloads):
        for name, limits in METHODS.items():
            found[name].append(limits(traffic.at_gamma(row, FIXED_GAMMA)))
    return {
        name: (
            sum(low <= METHODS_AT <= high for low, high in limits),
            float(np.median([high - low for low, high in limits])) / METHODS_AT,
        )
        for name, limits in found.items()
    }


def by_scipy(method: Literal["percentile", "BCa"]) -> Callable[[Paired], Limits]:
    """scipy's bootstrap of the ratio of totals, prompts resampled whole and in pairs."""

    def ratio(base_s: Floats, base_tokens: Floats, s: Floats, tokens: Floats, axis: int) -> Floats:
        return np.asarray(base_s.sum(axis) / base_tokens.sum(axis) / (s.sum(axis) / tokens.sum(axis)))

    def limits(paired: Paired) -> Limits:
        found = stats.bootstrap(
            (paired.base_s, paired.base_tokens, paired.spec_s, paired.spec_tokens),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=POLICY.confidence,
            method=method,
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        return float(found.low), float(found.high)

    return limits


def one_sided_studentised(paired: Paired) -> Limits:
    """The studentised bootstrap with each distance laid off to one side, which is the first half of our draws."""
    draws = np.array(speedup_interval(paired, POLICY.confidence).draws)
    low, high = np.quantile(draws[: len(draws) // 2], [(1 - POLICY.confidence) / 2, (1 + POLICY.confidence) / 2])
    return float(low), float(high)


def ours(paired: Paired) -> Limits:
    """As specbench reports it."""
    found = speedup_interval(paired, POLICY.confidence)
    assert found.low is not None and found.high is not None
    return found.low, found.high


METHODS: Mapping[str, Callable[[Paired], Limits]] = {
    "percentile": by_scipy("percentile"),
    "BCa": by_scipy("BCa"),
    "studentised, equal tails": one_sided_studentised,
    "studentised, symmetric (ours)": ours,
}
