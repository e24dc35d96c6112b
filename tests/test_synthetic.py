"""Rounds from servers that reject every draft: planted costs come back, whatever ends of texts and machine do."""

from __future__ import annotations

import random

import pytest

from specbench.backends.server.probing import _spent
from specbench.cost.model import cost_variance, round_costs
from specbench.cost.synthetic import Spent, round_points, round_seconds
from specbench.errors import EngineError
from specbench.records import Arm, ServerStats, Times, Trial

STEP_S = 0.010


def true_s(gamma: int) -> float:
    """A planted round: half a step to draft a token, a tenth to verify one."""
    return STEP_S * (1 + 0.6 * gamma)


def a_pass(gammas, tokens=40, *, found=1.0, drift=1.0, noise=0.0, rng=None) -> dict[int, Spent]:
    """Texts as llama.cpp writes them: the last rounds draft what there is room for, a look-up finds some."""
    rng = rng or random.Random(0)
    spent = {}
    for gamma in (0, *gammas):
        drafted = [min(gamma, tokens - 1 - n) if rng.random() < found else 0 for n in range(tokens)]
        seconds = sum(true_s(d) for d in drafted) * drift * rng.lognormvariate(0, noise)
        spent[gamma] = Spent(seconds, {d: drafted.count(d) for d in set(drafted)})
    return spent


def test_planted_rounds_come_back_though_the_last_ones_are_cut():
    found = round_seconds(a_pass(range(1, 9)))
    assert found == pytest.approx({gamma: true_s(gamma) for gamma in range(9)}, rel=1e-9)
    # Taken as if all rounds had drafted gamma tokens, gamma 8 comes out too cheap.
    one = a_pass(range(1, 9))[8]
    assert one.seconds / 40 < 0.95 * true_s(8)


def test_rounds_between_the_gammas_that_were_asked_for_are_interpolated():
    found = round_seconds(a_pass((2, 8)))
    assert found == pytest.approx({gamma: true_s(gamma) for gamma in (0, 2, 8)}, rel=1e-9)


def test_a_look_up_that_finds_little_shows_what_a_round_costs_and_one_that_finds_nothing_shows_none():
    assert round_seconds(a_pass((4,), found=0.3))[4] == pytest.approx(true_s(4), rel=1e-9)
    assert set(round_seconds(a_pass((4,), found=0.0))) == {0}
    assert round_seconds({4: Spent(1.0, {4: 10})}) == {}


def test_the_drift_of_a_machine_is_in_no_ratio_and_its_noise_is_in_the_interval():
    rng = random.Random(1)
    passes = [a_pass((1, 4), drift=1 + 0.2 * n, noise=0.03, rng=rng) for n in range(15)]
    points = round_points(passes, "d", 100, 2)
    assert [(p.model, p.tokens, p.batch, p.phase) for p in points] == [("d", n + 1, 2, "round") for n in (0, 1, 4)]
    step, _, four = points
    assert four.median_s / step.median_s == pytest.approx(true_s(4) / STEP_S, rel=0.03)
    assert four.low_s < step.median_s * true_s(4) / STEP_S < four.high_s
    assert four.high_s / four.low_s < 1.2 < step.high_s / step.low_s
    variance = cost_variance(points, "d", 4, 2)
    assert 0.005**2 < variance < 0.03**2
    assert cost_variance(points, "d", 3, 2) == variance  # the nearest that was probed
    assert cost_variance(points, "d", 4, 1) == 0.0


def test_whole_rounds_are_what_a_prediction_takes():
    points = round_points([a_pass((2, 4))] * 5, "d", 100, 1)
    costs = round_costs(points, "d", 500, 0.0)
    assert costs is not None and costs.step_s == pytest.approx(STEP_S)
    assert list(costs.judge_s) == pytest.approx([true_s(d) for d in range(5)])
    assert round_costs(points, "another", 500, 0.0) is None
    assert round_costs(points, "d", 500, 0.0, batch=2) is None


def answered(tokens: int, drafted: tuple[int, ...], accepted: tuple[int, ...], told: ServerStats | None) -> Trial:
    """As a server answers that keeps drafts: a round of two takes 22 ms, a step without one 10."""
    plain = tokens - 1 - len(drafted) - sum(accepted)
    decode_s = len(drafted) * true_s(2) + plain * STEP_S
    times = Times(0.1, None, None, None, None, 0.1 + decode_s)
    arm = Arm("speculative", "ngram:n=3", 2)
    return Trial("p", "0", None, arm, 0, 9, tokens, "0", "length", drafted, accepted, times, told=told)


def test_rounds_that_a_server_lists_as_they_come_cost_what_they_cost():
    """Whatever is kept of them; and the steps without a draft, which vLLM does not list, are not taken for rounds."""
    arm, lists = Arm("speculative", "ngram:n=3", 2), ServerStats(rounds=3)
    answers = [answered(20, (2, 2, 2), (2, 0, 1), lists), answered(9, (), (), ServerStats(rounds=0))]
    found = _spent(answers, arm, rejecting=False)
    alone = _spent([answered(12, (), (), ServerStats())], Arm("baseline"), rejecting=False)
    assert round_seconds({0: alone, 2: found}) == pytest.approx({0: STEP_S, 2: true_s(2)}, rel=1e-9)
    assert found.rounds == {2: 3, 0: 13 + 8}
    assert _spent([answered(9, (), (), ServerStats())], arm, rejecting=False) is None
    with pytest.raises(EngineError, match="accepts drafts, though"):
        _spent(answers, arm, rejecting=True)
