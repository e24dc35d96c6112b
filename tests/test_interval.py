"""Intervals are over prompts, paired, and cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from specbench.decision import interval
from specbench.decision.interval import (
    MANY,
    MIN_PROMPTS,
    ONE_PAIR,
    Paired,
    choose_gamma,
    excess_variance,
    reach,
    share_bar,
    share_interval,
    speedup_interval,
)


def fake_prompts(rng, n, speedup, spread=0.3, noise=0.03):
    """`n` prompts with heavy-tailed lengths whose own speedups scatter around the truth."""
    tokens = np.ceil(rng.lognormal(4, 0.6, n))
    base = 0.02 * tokens * rng.lognormal(0, noise, n)
    own = rng.gamma(1 / spread**2, spread**2, n)  # mean 1
    spec = 0.02 * tokens / speedup * own * rng.lognormal(0, noise, n)
    return Paired(base, tokens, spec, tokens)


def test_the_speedup_is_a_ratio_of_totals_per_token():
    paired = Paired(np.array([1.0, 3.0]), np.array([10.0, 10.0]), np.array([1.0, 1.0]), np.array([10.0, 20.0]))
    # 4 s over 20 tokens against 2 s over 30 tokens
    assert paired.speedup == pytest.approx((4 / 20) / (2 / 30))
    assert paired.by_prompt.tolist() == pytest.approx([1.0, 6.0])


def test_prompts_that_decode_nothing_have_no_speedup_of_their_own():
    paired = Paired(np.array([0.0, 2.0]), np.array([0.0, 10.0]), np.array([0.0, 1.0]), np.array([0.0, 10.0]))
    assert paired.by_prompt.tolist() == [2.0]
    assert paired.speedup == 2.0


def test_an_arm_that_decoded_nothing_is_not_chosen():
    ones, none = np.ones(4), np.zeros(4)
    arms = {1: Paired(ones, ones, none, none), 2: Paired(ones, ones, ones, ones)}
    assert choose_gamma(arms).best == 2


def test_few_prompts_give_a_value_without_an_interval():
    rng = np.random.default_rng(0)
    few = speedup_interval(fake_prompts(rng, MIN_PROMPTS - 1, 1.5), 0.95)
    assert (few.low, few.high, few.probability_at_least(1.0)) == (None, None, None)
    enough = speedup_interval(fake_prompts(rng, MIN_PROMPTS, 1.5), 0.95)
    assert enough.low < enough.value < enough.high


def test_equal_prompts_give_a_point():
    paired = Paired(np.full(20, 2.0), np.full(20, 10.0), np.full(20, 1.0), np.full(20, 10.0))
    interval = speedup_interval(paired, 0.95)
    assert (interval.low, interval.value, interval.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_prompt_that_outweighs_all_others_leaves_numbers():
    base = np.where(np.arange(10) < 1, 1e3, 1.0) * (1 + 0.001 * np.arange(10))
    for spec in (np.ones(10), base[::-1]):
        found = speedup_interval(Paired(base, np.ones(10), spec, np.ones(10)), 0.99)
        assert np.isfinite([found.low, found.high, *found.draws]).all() and found.low < found.value < found.high


def test_pairing_removes_what_both_arms_share():
    rng = np.random.default_rng(1)
    slow_day = rng.lognormal(0, 0.5, 40)  # the machine was slow for both arms of a prompt
    tokens = np.full(40, 50.0)
    paired = Paired(slow_day, tokens, slow_day / 1.5, tokens)
    shuffled = Paired(slow_day, tokens, rng.permutation(slow_day) / 1.5, tokens)
    tight, loose = speedup_interval(paired, 0.95), speedup_interval(shuffled, 0.95)
    assert tight.high - tight.low < 1e-9
    assert loose.high - loose.low > 0.2


def coverage(n, trials, cut=1, interval_of=speedup_interval):
    """How often the 95 % interval holds the true 1.3; with `cut`, every prompt is passed off as that many."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(trials):
        whole = fake_prompts(rng, n, 1.3)
        columns = (whole.base_s, whole.base_tokens, whole.spec_s, whole.spec_tokens)
        interval = interval_of(Paired(*(np.repeat(column / cut, cut) for column in columns)), 0.95)
        hits += interval.low <= 1.3 <= interval.high
    return hits / trials


def scipy_bca(paired, confidence):
    """The same question to scipy's bootstrap, in the variant that is usually recommended."""
    arrays = (paired.base_s, paired.base_tokens, paired.spec_s, paired.spec_tokens)

    def ratio(base_s, base_tokens, spec_s, spec_tokens, axis=-1):
        base = base_s.sum(axis) / base_tokens.sum(axis)
        return base / (spec_s.sum(axis) / spec_tokens.sum(axis))

    result = stats.bootstrap(arrays, ratio, paired=True, n_resamples=500, method="BCa", rng=np.random.default_rng(0))
    return result.confidence_interval


@pytest.mark.parametrize("n", [12, 40])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n):
    assert 0.91 <= coverage(n, trials=400) <= 0.98


@pytest.mark.full
def test_with_few_prompts_bca_would_not():
    assert coverage(12, trials=400) > coverage(12, trials=400, interval_of=scipy_bca) + 0.02


def test_with_many_prompts_it_agrees_with_scipy():
    paired = fake_prompts(np.random.default_rng(5), 400, 1.3)
    ours, theirs = speedup_interval(paired, 0.95), scipy_bca(paired, 0.95)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.1 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)


def test_resampling_tokens_instead_of_prompts_would_be_caught():
    assert coverage(40, trials=100, cut=10) < 0.6


def test_interval_and_probability_come_from_the_same_draws():
    interval = speedup_interval(fake_prompts(np.random.default_rng(6), 40, 1.3), 0.95)
    assert interval.probability_at_least(interval.low) == pytest.approx(0.975, abs=0.001)
    assert interval.probability_at_least(interval.high) == pytest.approx(0.025, abs=0.001)


def test_draws_lie_alike_on_both_sides_of_the_estimate():
    interval = speedup_interval(fake_prompts(np.random.default_rng(7), 12, 1.3), 0.95)
    assert interval.low * interval.high == pytest.approx(interval.value**2)
    assert interval.probability_at_least(interval.value) == pytest.approx(0.5, abs=0.001)


def test_how_resamples_are_kept_changes_no_digit(monkeypatch):
    paired = fake_prompts(np.random.default_rng(1), 1200, 1.3)  # more than are kept as floats
    packed = speedup_interval(paired, 0.95)
    monkeypatch.setattr(interval, "PACKED", 0)
    assert speedup_interval(paired, 0.95).draws == packed.draws


def test_excess_widens_the_interval_and_the_doubt_but_not_the_value():
    paired = fake_prompts(np.random.default_rng(8), 40, 1.3)
    plain, wide = speedup_interval(paired, 0.95), speedup_interval(paired, 0.95, excess=0.1**2)
    assert wide.value == plain.value
    # variances add up: an error of 0.1 beside the prompts' own
    half = np.log(plain.high / plain.low) / 2
    assert np.log(wide.high / wide.low) / 2 == pytest.approx(np.hypot(half, 1.96 * 0.1), rel=0.05)
    assert 0.5 < wide.probability_at_least(1.1) < plain.probability_at_least(1.1)
    assert speedup_interval(paired, 0.95, excess=0.1**2) == wide  # seeded
    assert speedup_interval(paired, 0.95, excess=0.0).draws == plain.draws


def test_excess_widens_a_point_too():
    paired = Paired(np.full(20, 2.0), np.full(20, 10.0), np.full(20, 1.0), np.full(20, 10.0))
    interval = speedup_interval(paired, 0.95, excess=0.02**2)
    assert (interval.low, interval.high) == pytest.approx((2 * np.exp(-0.0392), 2 * np.exp(0.0392)), rel=0.005)


def test_excess_is_what_prompts_do_not_explain():
    rng = np.random.default_rng(9)
    tokens = np.full(100, 50.0)
    first, second = rng.lognormal(0, 0.03, (2, 100))
    assert excess_variance(Paired(first, tokens, second, tokens)) < ONE_PAIR * 0.006**2
    # a second arm that is 5 % slower throughout
    found = excess_variance(Paired(first, tokens, 1.05 * second, tokens))
    assert found == pytest.approx(ONE_PAIR * np.log(1.05) ** 2, rel=0.25)
    # chance alone leaves on average 0.48 of the squared standard error: the mean of max(0, z^2 - 1)
    found = []
    for _ in range(400):
        a, b = rng.lognormal(0, 0.03, (2, 100))
        found.append(excess_variance(Paired(a, tokens, b, tokens)))
    assert np.mean(found) == pytest.approx(ONE_PAIR * 0.48 * 2 * 0.03**2 / 100, rel=0.3)
    few = Paired(first[:9], tokens[:9], 1.05 * second[:9], tokens[:9])
    assert excess_variance(few) == 0.0  # no interval that it could widen


def test_alpha_is_a_share_of_totals():
    accepted, rejected = np.array([8.0, 1.0]), np.array([2.0, 9.0])
    assert share_interval(accepted, rejected, 0.95).value == pytest.approx(9 / 20)
    many = share_interval(np.full(20, 8.0), np.arange(1.0, 21.0), 0.95)
    assert 0 < many.low < many.value < many.high < 1
    assert share_interval(np.full(20, 8.0), np.zeros(20), 0.95).low is None


def test_choosing_gamma_among_equals_does_not_flatter():
    # eight gammas that are all truly 1.0x: the best of them on the same prompts looks better than it is
    rng = np.random.default_rng(4)
    naive, honest = [], []  # seconds per token, whose mean is free of the bend that a ratio has
    for _ in range(200):
        base, tokens = np.full(12, 1.0), np.full(12, 10.0)
        arms = {g: Paired(base, tokens, rng.lognormal(0, 0.3, 12), tokens) for g in range(1, 9)}
        choice = choose_gamma(arms)
        naive.append(1 / arms[choice.best].speedup)
        honest.append(1 / choice.paired.speedup)
    truth = np.exp(0.3**2 / 2)
    assert np.mean(naive) < truth - 0.08
    assert np.mean(honest) == pytest.approx(truth, abs=0.03)


def test_a_tie_is_reported_at_what_both_give():
    # two gammas that are equally good, each on other prompts: the choice is a coin toss, its result must not be
    base, tokens = np.full(40, 1.0), np.full(40, 10.0)
    good_first = np.where(np.arange(40) % 2 == 0, 0.5, 1.5)
    arms = {1: Paired(base, tokens, good_first, tokens), 2: Paired(base, tokens, 2.0 - good_first, tokens)}
    assert arms[1].speedup == arms[2].speedup == 1.0
    # leave-one-out would report every prompt at its worse gamma, 0.67x; halves still lean a little to that side
    assert 0.92 < choose_gamma(arms).paired.speedup <= 1.0


def test_a_clear_best_gamma_is_chosen_for_every_prompt():
    base, tokens = np.full(12, 1.0), np.full(12, 10.0)
    arms = {1: Paired(base, tokens, base * 0.9, tokens), 4: Paired(base, tokens, base * 0.5, tokens)}
    choice = choose_gamma(arms)
    assert choice.best == 4
    assert choice.paired.speedup == pytest.approx(2.0)


def test_a_bar_is_nearly_the_interval_and_absent_where_that_is():
    rng = np.random.default_rng(3)
    reached = rng.integers(20, 60, 40).astype(float)
    part = rng.binomial(reached.astype(int), np.clip(rng.normal(0.45, 0.1, 40), 0.05, 0.95)).astype(float)
    bar, interval = share_bar(part, reached - part, 0.95), share_interval(part, reached - part, 0.95)
    assert bar.value == pytest.approx(interval.value)
    assert bar.low == pytest.approx(interval.low, abs=0.01) and bar.high == pytest.approx(interval.high, abs=0.01)
    assert bar.high - bar.low > 0.03
    zero = np.zeros(40)
    for above, below in ((part[:9], part[:9]), (zero, zero), (part, zero)):
        assert share_bar(above, below, 0.95).low is None


def test_the_reach_of_a_bar_is_students_t_and_does_not_jump_where_a_normal_takes_over():
    for freedom in (9, 50, MANY - 1, MANY, 1000):
        exact = float(stats.t.ppf(0.975, freedom))
        assert reach(freedom, 0.95) == pytest.approx(exact, rel=1e-9 if freedom < MANY else 0.01)
