"""Counts and rates, against published numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specbench.acceptance.metrics import count, pooled, trial_counts
from specbench.records import Arm, Round, ServerStats, Times, Trial, Turn


def test_the_llama_cpp_log():
    # 87 rounds of gamma 3, two of them cut to one draft; survival .805 .632 .483 as its log prints it
    lengths = [3] * 42 + [2] * 13 + [1] * 15 + [0] * 17
    counts = count([Round(3, n) for n in lengths], gamma=3)
    assert (counts.rounds, counts.accepted) == (87, 167)
    assert counts.survival == pytest.approx((0.805, 0.632, 0.483), abs=0.0005)
    assert counts.tokens_per_round == pytest.approx(2.920, abs=0.0005)
    # with all rounds of three, 261 were drafted; the log has 259 because of two cut rounds
    assert counts.acceptance_rate == pytest.approx(0.640, abs=0.0005)
    assert counts.alpha == pytest.approx(0.788, abs=0.0005)


def test_a_cut_round_is_censored_not_rejected():
    counts = count([Round(3, 3), Round(1, 1), Round(0, 0), Round(3, 1)], gamma=3)
    assert (counts.rejections, counts.reached, counts.survived) == (1, (3, 2, 2), (3, 1, 1))
    assert counts.alpha == pytest.approx(5 / 6)
    assert counts.survival == (1.0, 0.5, 0.5)


def test_absent_is_none():
    nothing = count([Round(0, 0)], gamma=2)
    assert (nothing.acceptance_rate, nothing.alpha, nothing.survival) == (None, None, (None, None))
    assert count([], gamma=1).tokens_per_round is None


def test_pooling_is_adding():
    a, b = [Round(2, 1), Round(2, 2)], [Round(2, 0)]
    assert pooled([count(a, 2), count(b, 2)]) == count(a + b, 2)


@pytest.mark.parametrize("wrong", [Round(3, 1), Round(2, 3), Round(1, -1)])
def test_an_impossible_round_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot accept"):
        count([wrong], gamma=2)


def test_steps_that_a_server_does_not_list_are_rounds_without_a_draft():
    """A real answer of vLLM: 128 tokens, 28 rounds that accepted 78. Its mean_acceptance_length, 3.79, counts these 28
    alone; 21 tokens more came from steps in which the look-up found nothing."""
    told = ServerStats(rounds=28, drafted=112, accepted=78)
    listed = replace(served_trial(128), drafted=(4,) * 28, accepted=(4,) * 16 + (3,) * 3 + (2,) + (1,) * 3 + (0,) * 5)
    for trial in (listed, replace(served_trial(128), told=told)):
        found = trial_counts(trial, 4)
        assert (found.rounds, found.drafted, found.accepted) == (49, 112, 78)
        assert found.tokens_per_round == pytest.approx(127 / 49)
    assert trial_counts(listed, 4).survival[0] == pytest.approx(23 / 28)
    none = trial_counts(replace(served_trial(128), told=ServerStats(rounds=0, drafted=0, accepted=0)), 4)
    assert (none.rounds, none.tokens_per_round) == (127, 1.0)


def test_what_was_accepted_beyond_the_end_of_a_text_is_not_in_it():
    """5 tokens asked for: one of the prompt, then rounds of 1 + 1 and 1 + 4, of which three never left the server. What
    it drafted is drafted, and nobody rejected it."""
    trial = replace(served_trial(5), drafted=(4, 4), accepted=(1, 4))
    found = trial_counts(trial, 4)
    assert (found.rounds, found.drafted, found.accepted, found.rejections) == (2, 8, 2, 1)
    assert (found.reached, found.survived) == ((2, 1, 1, 1), (2, 0, 0, 0))
    told = trial_counts(replace(served_trial(5), told=ServerStats(rounds=2, drafted=8, accepted=5)), 4)
    assert (told.rounds, told.drafted, told.accepted) == (2, 8, 2)
    # A round that accepts the end of the text adds no token of the target's, on a server as in process.
    ended = trial_counts(replace(trial, finish="eos"), 4)
    assert (ended.rounds, ended.drafted, ended.accepted) == (2, 8, 3)
    assert trial_counts(replace(trial, accepted=(1, 1), finish="eos"), 4).accepted == 2
    whole = trial_counts(replace(trial, drafted=(4, 4), accepted=(0, 2)), 4)
    assert (whole.rounds, whole.accepted, whole.rejections) == (2, 2, 2)


@pytest.mark.parametrize(("tokens", "finish", "accepted"), [((5, 5, 5), "eos", 9), ((5, 5, 7), "length", 10)])
def test_every_turn_of_a_conversation_may_accept_its_own_end(tokens, finish, accepted):
    """Two rounds a turn: of the first two 1 + 1 and 1 + 2 with the end, the third was cut or ends as they do."""
    more = {"members": ("p#1", "p#2", "p#3"), "turns": tuple(Turn(9, None, n, 0.1, 1.0) for n in tokens)}
    trial = replace(served_trial(sum(tokens)), finish=finish, **more)
    listed = replace(trial, drafted=(4,) * 6, accepted=(1, 2, 1, 2, 1, accepted - 7))
    told = replace(trial, told=ServerStats(rounds=6, drafted=24, accepted=accepted))
    assert [trial_counts(each, 4).accepted for each in (listed, told)] == [accepted, accepted]
    assert [trial_counts(each, 4).rounds for each in (listed, told)] == [6, 6]


def served_trial(tokens: int) -> Trial:
    times = Times(0.1, None, None, None, None, 1.0)
    return Trial(
        "p", "0", None, Arm("speculative", "d", 4), 0, 9, tokens, "0", "length", (), (), times, told=ServerStats()
    )
