"""The fake traffic has the truth it claims, verdicts on it are as sure as they say, and bugs show in it."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import calibration, fake_traffic
from benchmarks.calibration import QUESTIONS, Question, ask_fixed, ask_widened, cell, measured
from benchmarks.calibration_page import HEAD, draw_figure, every_row, tables, wilson
from benchmarks.fake_traffic import GAMMAS, Machine, count_rounds, draw, make_pool
from specbench.decision import interval
from specbench.decision.interval import Paired, choose_gamma, speedup_interval

FIXED = QUESTIONS["fixed gamma"]
PAGE = Path(__file__).parent.parent / "docs" / "calibration.md"


@lru_cache
def natural():
    return make_pool(0.5, size=20_000)


def test_the_planted_speedup_is_the_populations():
    pool = natural()
    assert pool.plant(1.2, 2).speedup(2) == pytest.approx(1.2)
    best = pool.plant(1.2)
    assert max(map(best.speedup, GAMMAS)) == pytest.approx(1.2)
    assert best.speedup(1) / best.speedup(4) == pytest.approx(pool.speedup(1) / pool.speedup(4))
    assert [pool.plant_tie(1.2).speedup(gamma) for gamma in GAMMAS] == pytest.approx([1.2] * 3)


@pytest.mark.parametrize("machine", [Machine(), Machine(drift=0.01, noise=0.1, disturbed=0.1)])
def test_what_a_machine_adds_leaves_the_truth_alone(machine):
    pool = natural().plant_tie(1.1)
    traffic = draw(pool, 200, 500, np.random.default_rng(0), machine)
    totals = traffic.seconds.sum(2)  # [arms, workloads]
    found = np.log(totals[0] / totals[1:])
    errors = found.std(axis=1, ddof=1) / np.sqrt(found.shape[1])
    assert np.all(np.abs(found.mean(axis=1) - np.log([1.0, 1.1, 1.1, 1.1])) < 4 * errors)
    assert errors.max() < 0.004


def test_rounds_at_the_ends():
    tokens = np.array([50.0, 7.0, 4.0])
    rng = np.random.default_rng(0)
    assert count_rounds(rng, tokens, np.full(3, 1 - 1e-12)).tolist() == [
        np.ceil(tokens / (gamma + 1)).tolist() for gamma in GAMMAS
    ]
    assert count_rounds(rng, tokens, np.full(3, 1e-12)).tolist() == [tokens.tolist()] * 3


def test_tokens_of_a_text_are_not_independent(monkeypatch):
    def spread():
        rounds = count_rounds(np.random.default_rng(0), np.full(2000, 100.0), np.full(2000, 0.5))
        return rounds[0].std()

    correlated = spread()
    monkeypatch.setattr(fake_traffic, "STRETCH", 0.0)
    assert correlated > 1.3 * spread()


@pytest.mark.full
@pytest.mark.parametrize(
    ("question", "n"), [("fixed gamma", 12), ("three equal gammas", 12), ("best of three gammas", 30)]
)
def test_the_goals_hold_in_small(question, n):
    found = cell(QUESTIONS[question], 1.09, n, 400)
    assert 0.92 <= found.covered / found.workloads <= 0.98
    assert found.wrong_go / found.workloads <= 0.05


def test_losing_the_pairs_would_show():
    def unpaired(traffic, row, pool):
        paired = traffic.at_gamma(row, 2)
        far = np.roll(np.arange(paired.n), paired.n // 2)  # every prompt with the draft arm of a prompt of another hour
        lost = replace(paired, spec_s=paired.spec_s[far], spec_tokens=paired.spec_tokens[far])
        return pool.speedup(2), speedup_interval(lost, 0.95)

    drifting = Machine(drift=0.05)
    kept, lost = (cell(Question(FIXED.plant, ask), 1.10, 30, 60, drifting) for ask in (ask_fixed, unpaired))
    assert lost.width > 1.5 * kept.width


def test_choosing_and_reporting_on_the_same_prompts_would_show():
    pool = QUESTIONS["three equal gammas"].plant(calibration.population(1.09), 1.09)
    honest, naive = [], []
    for traffic, row in measured(pool, 12, 300, Machine(noise=0.15)):
        by_gamma = traffic.by_gamma(row)
        choice = choose_gamma(by_gamma)
        honest.append(np.log(choice.paired.speedup / 1.09))
        naive.append(np.log(by_gamma[choice.best].speedup / 1.09))
    assert abs(np.mean(honest)) < 0.02
    assert np.mean(naive) > 0.035


def test_taking_tokens_for_the_unit_would_show():
    def by_token(traffic, row, pool):
        paired = traffic.at_gamma(row, 2)
        columns = (paired.base_s, paired.base_tokens, paired.spec_s, paired.spec_tokens)
        return pool.speedup(2), speedup_interval(Paired(*(np.repeat(c / 20, 20) for c in columns)), 0.95)

    assert cell(replace(FIXED, ask=by_token), 1.10, 12, 60).covered < 30


def test_an_error_that_an_arm_shares_is_seen_by_the_second_baseline():
    biased = Machine(arm_bias=calibration.ARM_BIAS)
    without, widened = (cell(Question(FIXED.plant, ask), 1.10, 100, 120, biased) for ask in (ask_fixed, ask_widened))
    assert without.covered / 120 < 0.86
    assert widened.covered > without.covered + 8
    assert widened.width > without.width


def test_turns_within_a_prompt_leave_little_of_two_speeds():
    """And a machine that changes by itself leaves the truth where it was."""
    pool = FIXED.plant(calibration.population(1.10), 1.10)
    apart = {}
    for sliced in (False, True):
        machine = Machine(slow=calibration.SLOW, dwell=calibration.DWELL, sliced=sliced)
        logs = [np.log(t.again(row).by_prompt) for t, row in measured(pool, 30, 40, machine)]
        speedups = [t.at_gamma(row, 2).speedup for t, row in measured(pool, 100, 60, machine)]
        assert np.mean(speedups) == pytest.approx(1.10, rel=0.02)
        apart[sliced] = np.std(logs)
    assert apart[True] < 0.6 * apart[False]


def test_a_few_long_prompts_widen_the_interval():
    even = np.full(12, 1.0)
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(0, 0.1, 12)
    long = np.where(np.arange(12) < 3, 20.0, 1.0)
    for weights, factor in ((even, 1.0), (long, 1.11)):
        columns = (weights * seconds, weights), (weights, weights * seconds[::-1])
        assert interval._uneven(*columns) == pytest.approx(factor, abs=0.03)


def test_the_intervals_of_shares_are_scipys():
    for hits, of in ((0, 100), (3, 100), (1900, 2000), (50, 50)):
        theirs = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
        assert wilson(hits, of) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_every_cell_has_a_row_in_the_file_and_the_page_its_extremes():
    rows = list(csv.DictReader((PAGE.parent / "figures" / "calibration.csv").read_text(encoding="utf-8").splitlines()))
    cells = {
        (name, f"{s:.2f}", str(n)) for name in QUESTIONS for s in calibration.ACCEPTANCE for n in calibration.PROMPTS
    }
    assert {(row["question"], row["true speedup"], row["prompts"]) for row in rows} == cells and len(rows) == len(cells)
    text = PAGE.read_text(encoding="utf-8")
    for name in QUESTIONS:
        for n in calibration.PROMPTS:
            mine = [row for row in rows if (row["question"], row["prompts"]) == (name, str(n))]
            held, *wrong = ([float(row[key].split()[0]) for row in mine] for key in HEAD[3:6])
            most = " | ".join(f"{max(shares):.1f}%" for shares in wrong)
            unclear = " ".join(row["UNCLEAR"] for row in mine)
            assert f"| {name} | {n} | {min(held):.1f} to {max(held):.1f}% | {most} | {unclear}% |" in text


def test_tables_and_the_file_give_what_was_counted():
    found = [
        replace(cell(FIXED, 1.10, 12, 5), workloads=100, covered=95, wrong_no_go=4, wrong_go=0, unclear=9, width=0.2)
    ]
    cells = {"fixed gamma": [*found, replace(found[0], speedup=1.2, covered=90)]}
    page = tables(cells, {12: {"BCa": (90, 0.2)}}, {"no bias": found}, 100)
    assert "| fixed gamma | 12 | 90.0 to 95.0% | 0.0% | 4.0% | 9 9% |" in page
    assert "| BCa | 90.0% | 20.0% |" in page
    row = 'fixed gamma,1.10,12,"95.0 % [88.8, 97.8]","0.0 % [0.0, 3.7]","4.0 % [1.6, 9.8]",9,20.0'
    assert row in every_row(cells).splitlines()


@pytest.mark.full
def test_the_figure_can_show_nought_and_all(tmp_path):
    found = replace(cell(FIXED, 1.10, 12, 5), workloads=2000, wrong_go=0, wrong_no_go=0)
    rows = [replace(found, covered=covered, speedup=speedup) for covered, speedup in ((2000, 1.1), (0, 1.2))]
    draw_figure({"fixed gamma": rows, "best of three gammas": rows}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.png", "calibration.svg"}
