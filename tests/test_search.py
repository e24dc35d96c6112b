"""The search over cut-offs finds what was planted, and does not invent what is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import text_of

from specbench.acceptance.scores import BlockScores, Scores
from specbench.analysis import replayed as search
from specbench.analysis.replayed import best_pair
from specbench.cost.model import predicted_rounds
from specbench.drafters import parse_draft, with_cutoff
from specbench.records import CostPoint

# Verifying costs as much as stepping, token by token: a wrong draft is a whole step lost.
POINTS = [
    *(CostPoint(None, 100, n, 0.02 * n, 0, 0, 9) for n in range(1, 6)),
    *(CostPoint("d", 100, n, 0.001, 0, 0, 9) for n in (1, 2)),
]
CHEAP = [
    *(CostPoint(None, 100, n, 0.02, 0, 0, 9) for n in range(1, 6)),
    *(CostPoint("d", 100, n, 0.0, 0, 0, 9) for n in (1, 2)),
]


def texts(sure_when_right, n=30, length=200, seed=0):
    """Right in half of the positions; sure (0.9) exactly there, or anywhere."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        right = rng.random(length) < 0.5
        sure = right if sure_when_right else rng.random(length) < 0.5
        accept, confidence = right.astype(np.float32), np.where(sure, 0.9, 0.1).astype(np.float32)
        ends = np.zeros(length, bool)
        found.append(text_of(Scores(accept, accept, confidence, accept, accept, ends), length + 1, f"p{number}"))
    return found


@pytest.mark.full
def test_a_draft_that_knows_when_it_is_right_is_cut_where_it_does_not():
    found = best_pair(texts(True), POINTS, (1, 2, 4), 0.95, "d")
    assert 0.1 < found.cutoff <= 0.9
    assert found.without < 0.9  # drafting always, half of it wrong, loses here
    by_cutoff = {row.cutoff: row for row in found.rows}
    assert by_cutoff[found.cutoff].speedup > found.without
    assert found.speedup_low <= found.speedup <= found.speedup_high


@pytest.mark.full
def test_a_draft_that_does_not_know_gains_nothing():
    found = best_pair(texts(False), CHEAP, (1, 2, 4), 0.95, "d")
    assert (found.cutoff, found.gamma) == (0.0, 4)
    assert found.speedup == pytest.approx(found.without)


def test_many_pairs_of_noise_are_not_reported_as_their_best(monkeypatch):
    """All pairs cost the same but for noise that belongs to the text: on other texts the best of them is no better."""
    rng = np.random.default_rng(3)

    def noisy(found, costs):
        ones = np.ones(len(found.rounds))
        return type(predicted_rounds(found, costs))(rng.lognormal(0, 0.3, len(ones)), 0 * ones, 0 * ones)

    monkeypatch.setattr(search, "predicted_rounds", noisy)
    points = [CostPoint(None, 100, n, 0.02, 0, 0, 9) for n in range(1, 6)]
    best = best_pair(texts(False, n=40, length=50), points, (1, 2, 4), 0.95, "d")
    top = max(row.speedup for row in best.rows)
    assert best.speedup < top - 0.5 * (top - 1 / 1.046)  # the mean of exp(0.3 x normal) is 1.046


def test_blocks_and_unpriced_drafts_have_no_best_pair():
    flat = text_of(BlockScores(np.array([1], np.int32), np.array([0], np.int32)), 9)
    assert best_pair([flat], POINTS, (1,), 0.95, "n") is None
    assert best_pair(texts(True, n=2), [], (1,), 0.95, "d") is None
    assert best_pair(texts(True, n=2), POINTS, (5, 6), 0.95, "d") is None  # beyond the widest pass probed


def test_repeats_of_a_prompt_and_answers_of_a_conversation_are_one_unit():
    few = texts(True, n=6)
    repeats = [replace(one, repeat=n) for one in few for n in range(3)]
    (*rest, first), (second, *_) = texts(True, n=11), texts(True, n=1, seed=1)
    talks = [*rest, replace(first, conversation="a"), replace(second, conversation="a")]
    found = best_pair(repeats, POINTS, (1, 2), 0.95, "d")
    assert found.speedup_low is None
    assert (found.cutoff, found.gamma) == ((one := best_pair(few, POINTS, (1, 2), 0.95, "d")).cutoff, one.gamma)
    assert best_pair(talks[2:], POINTS, (1, 2), 0.95, "d").speedup_low is None
    assert best_pair(talks[1:], POINTS, (1, 2), 0.95, "d").speedup_low is not None


def test_a_default_cut_off_is_for_drafts_with_a_confidence_of_their_own():
    assert with_cutoff("org/m", 0.3) == "org/m,cutoff=0.3"
    assert with_cutoff("ngram:n=3+org/m", 0.3) == "ngram:n=3+org/m,cutoff=0.3"
    assert with_cutoff("skip:auto", 0.25) == "skip:auto,cutoff=0.25"
    assert with_cutoff("org/m,cutoff=0.1", 0.3) == "org/m,cutoff=0.1"
    assert with_cutoff("ngram:n=3", 0.3) == "ngram:n=3"
    assert with_cutoff("cross:org/m", 0.3) == "cross:org/m"
    assert with_cutoff("org/m", 0.0) == "org/m"
    assert parse_draft(with_cutoff("org/m", 1e-5)).cutoff == 1e-5
