"""The policy, case by case."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from specbench.decision.verdict import Gates, judge, least_share, prompts_to_settle
from specbench.records import Interval, Policy, Reason

POLICY = Policy(min_speedup=1.10, confidence=0.95)


def interval(*draws, n=40, value=None):
    middle = sorted(draws)[len(draws) // 2] if value is None else value
    return Interval(middle, min(draws), max(draws), 0.95, n, tuple(draws))


SURE = interval(*[1.2] * 96, *[1.0] * 4)
UNSURE = interval(*[1.2] * 94, *[1.0] * 6)
SLOW = interval(*[1.2] * 5, *[1.0] * 95)


@pytest.mark.parametrize(("speedup", "call"), [(SURE, "GO"), (UNSURE, "UNCLEAR"), (SLOW, "NO-GO")])
def test_the_probability_decides(speedup, call):
    assert judge(speedup, POLICY, Gates(0.1)).call == call


def test_the_probability_is_the_share_of_draws():
    assert judge(SURE, POLICY, Gates()).probability == 0.96
    odds = {"minimum": 1.10, "confidence": 0.95, "probability": 0.96}
    assert judge(SURE, POLICY, Gates()).reasons == (Reason("odds", odds),)


def test_too_many_slower_prompts_forbid_a_go():
    verdict = judge(SURE, POLICY, Gates(slower_share=0.4))
    assert verdict.call == "NO-GO"
    slower = {"share": 0.4, "slower_than": 0.95, "allowed": 0.25, "may_be_chance": False}
    assert verdict.reasons[0] == Reason("slower-prompts", slower)
    assert judge(SURE, POLICY, Gates(slower_share=0.25)).call == "GO"


@pytest.mark.parametrize(("slower", "prompts", "call"), [(4, 12, "UNCLEAR"), (16, 48, "UNCLEAR"), (40, 120, "NO-GO")])
def test_a_third_of_few_prompts_does_not_forbid_a_go_and_a_third_of_many_does(slower, prompts, call):
    gates = Gates(slower / prompts, least_share(slower / prompts, prompts, POLICY.confidence))
    verdict = judge(SURE, POLICY, gates)
    assert verdict.call == call
    assert verdict.reasons[0].values["may_be_chance"] is (call == "UNCLEAR")
    # where speed says no, slower prompts make it no less sure
    assert judge(SLOW, POLICY, gates).call == "NO-GO"


@pytest.mark.parametrize(("share", "prompts"), [(0.3, 20), (1.0, 12), (0.05, 200)])
def test_the_least_share_is_that_of_the_binomial(share, prompts):
    """From such a share on, as many as were seen are at least as likely as the confidence leaves open."""
    low = least_share(share, prompts, 0.95)
    assert stats.binom.sf(round(share * prompts) - 1, prompts, low) == pytest.approx(0.05, abs=1e-6)
    assert least_share(0.0, prompts, 0.95) == 0.0


def test_a_draft_that_never_drafted_is_refused_and_says_so():
    idle = Reason("never-drafted")
    assert judge(SURE, POLICY, Gates(idle=idle)).reasons == (idle,)


def test_a_lossy_loop_is_a_no_go_however_fast():
    fast = interval(*[3.0] * 100)
    lossy = Reason("not-lossless", {"prompts": 1})
    assert judge(fast, POLICY, Gates(0.0, lossy=lossy)).reasons == (lossy,)


def test_no_interval_no_verdict():
    verdict = judge(Interval(3.0, None, None, 0.95, 4), POLICY, Gates(0.0))
    assert (verdict.call, verdict.probability) == ("UNCLEAR", None)
    assert verdict.reasons == (Reason("too-few-prompts", {"prompts": 4, "needed": 10}),)


def test_prompts_to_settle_grow_with_the_square_of_the_width():
    def needed(reach):
        return prompts_to_settle(Interval(1.20, 1.20 / np.exp(reach), 1.20 * np.exp(reach), 0.95, 50, (1.2,)), POLICY)

    assert needed(0.4) / needed(0.2) == pytest.approx(4, rel=0.05)
    assert prompts_to_settle(Interval(1.10, 1.0, 1.2, 0.95, 20, (1.1,)), POLICY) is None


def test_a_run_of_the_size_that_would_settle_it_does_so_in_four_of_five_cases():
    """Prompts whose log speedups scatter by 0.3 around 1.20x, and a t-test that asks for 1.10x."""
    rng = np.random.default_rng(0)
    reach = 0.3 * 2.0096 / np.sqrt(50)  # Student's quantile for 95 % and 49 degrees of freedom
    n = prompts_to_settle(Interval(1.20, 1.20 / np.exp(reach), 1.20 * np.exp(reach), 0.95, 50, (1.2,)), POLICY)
    logs = np.log(1.20 / 1.10) + 0.3 * rng.standard_normal((4000, n))
    decided = (logs.mean(1) / (logs.std(1, ddof=1) / np.sqrt(n)) > stats.t.ppf(0.95, n - 1)).mean()
    assert decided == pytest.approx(0.8, abs=0.02)


def test_unclear_says_what_would_settle_it():
    unclear = Interval(1.15, 1.05, 1.25, 0.95, 20, (*[1.2] * 80, *[1.0] * 20))
    more = judge(unclear, POLICY, Gates()).reasons[1]
    assert more.code == "more-prompts" and more.values["more"] == pytest.approx(90, abs=5)
    tie = Interval(1.10, 1.05, 1.15, 0.95, 20, (*[1.2] * 50, *[1.0] * 50))
    assert judge(tie, POLICY, Gates()).reasons[1].code == "on-the-minimum"
