"""A plan from a small pilot is kept by the run that follows it."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from conftest import examples, full
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_interval import fake_prompts

from specbench.decision.interval import MIN_PROMPTS, Paired, speedup_interval
from specbench.decision.plan import (
    MAX_PROMPTS,
    Spread,
    influence,
    prompts_for_verdict,
    prompts_for_width,
    repeated,
    spread_of,
)
from specbench.decision.verdict import Gates, judge
from specbench.records import Policy

SPREADS = st.floats(0.01, 2.0)
HALF_WIDTHS = st.floats(0.005, 0.5)
SPEEDUPS = st.floats(0.3, 4.0)


def uneven(rng, n, speedup):
    """Prompts of very uneven lengths of which the long ones gain less: the scatter of the prompts' own speedups is then
    not the spread of the speedup of totals."""
    tokens = np.ceil(rng.lognormal(4, 0.9, n))
    base = 0.02 * tokens
    own = np.where(tokens > np.exp(4.5), 1.6, 1.0) * rng.lognormal(0, 0.05, n)
    return Paired(base, tokens, base / speedup * own, tokens)


WORKLOADS = {"scattered": fake_prompts, "uneven": uneven}


@cache
def true_spread(make):
    """From a sampling distribution, not from a formula: how much the log speedup of 2,000 prompts moves."""
    rng = np.random.default_rng(0)
    return float(np.std([math.log(make(rng, 2000, 1.3).speedup) for _ in range(400)])) * math.sqrt(2000)


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_the_spread_of_a_large_pilot_is_the_true_one(make):
    found = spread_of([influence(make(np.random.default_rng(1), 20_000, 1.3))], 0.95)
    assert found.value == pytest.approx(true_spread(make), rel=0.08)


def test_influence_is_what_leaving_a_prompt_out_would_change():
    paired = fake_prompts(np.random.default_rng(2), 400, 1.3)
    without = [math.log(paired.take(np.arange(400) != i).speedup) for i in range(400)]
    changed = (math.log(paired.speedup) - np.array(without)) * 399
    np.testing.assert_allclose(influence(paired), changed, rtol=0.1, atol=0.02)


def realised(make, n, half_width, runs=150):
    """Share of runs of `n` prompts whose interval is within `half_width` of the speedup."""
    rng = np.random.default_rng(3)
    intervals = [speedup_interval(make(rng, n, 1.3), 0.95) for _ in range(runs)]
    return sum(math.log(i.high / i.low) / 2 <= math.log1p(half_width) for i in intervals) / runs


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("half_width", [0.1, *full(0.06)])
def test_a_run_of_the_planned_size_has_the_wanted_width_about_as_often_as_promised(make, half_width):
    n = prompts_for_width(true_spread(make), half_width, 0.95)
    # long tails make a run's own spread vary more than the formula knows
    assert 0.6 <= realised(make, n, half_width) <= 0.95
    assert realised(make, int(0.6 * n), half_width) < 0.35


@pytest.mark.parametrize("make", WORKLOADS.values(), ids=WORKLOADS)
def test_a_pilot_of_15_prompts_brackets_what_is_needed(make):
    needed = prompts_for_width(true_spread(make), 0.06, 0.95)
    rng, hits = np.random.default_rng(4), 0
    for _ in range(300):
        spread = spread_of([influence(make(rng, 15, 1.3))], 0.95)
        low, high = (prompts_for_width(end, 0.06, 0.95) for end in (spread.low, spread.high))
        hits += low <= needed <= high
    assert hits / 300 >= 0.87


@pytest.mark.full
def test_planned_from_a_pilot_the_wanted_width_is_reached():
    """Pilot, plan, run, over and over: at the planned number about the half of runs, at the upper end nearly all."""
    rng, at = np.random.default_rng(5), {"value": 0, "high": 0}
    for _ in range(120):
        spread = spread_of([influence(fake_prompts(rng, 15, 1.3))], 0.95)
        for end in at:
            n = prompts_for_width(getattr(spread, end), 0.15, 0.95)
            interval = speedup_interval(fake_prompts(rng, n, 1.3), 0.95)
            at[end] += math.log(interval.high / interval.low) / 2 <= math.log1p(0.15)
    assert 0.3 <= at["value"] / 120 <= 0.8
    assert at["high"] / 120 >= 0.85


@pytest.mark.parametrize(("truth", "call"), [(1.0, "NO-GO"), (1.2, "GO"), (1.3, "GO")])
def test_a_run_of_the_planned_size_is_decided_about_as_often_as_promised(truth, call):
    n = prompts_for_verdict(true_spread(fake_prompts), truth, 1.1, 0.95)
    rng = np.random.default_rng(6)
    runs = [judge(speedup_interval(fake_prompts(rng, n, truth), 0.95), Policy(), Gates()).call for _ in range(150)]
    assert 0.66 <= runs.count(call) / 150 <= 0.92


def test_the_power_is_that_of_the_noncentral_t():
    for spread, truth in [(0.25, 1.2), (0.25, 1.05), (0.6, 1.3)]:
        n = prompts_for_verdict(spread, truth, 1.1, 0.95)
        power = [
            stats.nct.sf(stats.t.ppf(0.95, m - 1), m - 1, abs(math.log(truth / 1.1)) * math.sqrt(m) / spread)
            for m in (n - 1, n)
        ]
        assert power[0] < 0.801 and power[1] > 0.799


@examples(100)
@given(SPREADS, HALF_WIDTHS, st.floats(1.01, 3.0))
def test_more_spread_or_a_narrower_interval_never_takes_fewer_prompts(spread, half_width, factor):
    def n(*args):
        return prompts_for_width(*args) or MAX_PROMPTS + 1

    here = n(spread, half_width, 0.9)
    assert here >= MIN_PROMPTS
    assert n(spread * factor, half_width, 0.9) >= here
    assert n(spread, half_width / factor, 0.9) >= here
    assert n(spread, half_width, 0.95) >= here


@examples(100)
@given(SPREADS, SPEEDUPS, SPEEDUPS)
def test_the_farther_from_the_minimum_the_fewer_prompts(spread, a, b):
    near, far = sorted((a, b), key=lambda speedup: abs(math.log(speedup)))
    n_near, n_far = (prompts_for_verdict(spread, speedup, 1.0, 0.95) or MAX_PROMPTS + 1 for speedup in (near, far))
    assert MIN_PROMPTS <= n_far <= n_near


@examples(100)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=40), st.floats(0.5, 0.9999))
def test_the_interval_of_the_spread_holds_it(values, confidence):
    spread = spread_of([np.array(values)], confidence)
    assert 0 <= spread.low <= spread.value <= spread.high < math.inf


def test_no_number_of_prompts_decides_on_the_minimum():
    assert prompts_for_verdict(0.2, 1.1, 1.1, 0.95) is None
    assert prompts_for_verdict(0.0, 1.2, 1.1, 0.95) == MIN_PROMPTS
    assert prompts_for_width(0.0, 0.01, 0.95) == MIN_PROMPTS
    assert prompts_for_width(2.0, 0.001, 0.95) is None


def test_groups_share_the_spread_within_them():
    apart = [np.array([0.0, 1.0, 2.0]), np.array([10.0, 11.0, 12.0])]
    assert spread_of(apart, 0.95).value == pytest.approx(1.0)
    assert spread_of([np.zeros(1), np.zeros(1)], 0.95) is None
    assert spread_of([], 0.95) is None


def test_repeats_average_out_noise_and_nothing_else():
    found = repeated(Spread(0.5, 0.4, 0.6), noise=0.3, more=9)
    assert found.value == pytest.approx(math.sqrt(0.4**2 + 0.1**2))
    assert repeated(Spread(0.5), noise=0.0, more=9).value == 0.5
    assert repeated(Spread(0.2), noise=0.3, more=4).value == pytest.approx(0.1)
