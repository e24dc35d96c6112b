"""The sums over recorded answers: those of the replay itself, with intervals that know what a conversation is."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from specbench.acceptance.replay import as_text
from specbench.acceptance.replay import replay as replay_all
from specbench.acceptance.scores import BlockScores, Scores
from specbench.analysis import recorded as recorded_sums
from specbench.analysis.recorded import recorded_drafts

UNKNOWN = np.float32("nan")


def text(accepts, name, conversation, category="a", prompt_tokens=10, draft="d"):
    accept = np.array(accepts, dtype=np.float32)
    unknown = np.full(len(accept), UNKNOWN)
    ends = np.zeros(len(accept), dtype=bool)
    known = {"prompt_tokens": prompt_tokens, "conversation": f"{conversation:016x}"}
    scores = Scores(accept, accept, accept * 0 + 0.5, unknown, unknown, ends)
    return as_text(scores, prompt_id=name, category=category, draft=draft, repeat=0, limit=10_000, **known)


def conversations(number, turns, seed, tokens=16):
    """Texts whose drafts are accepted with a chance that a whole conversation shares."""
    rng = np.random.default_rng(seed)
    return [
        text(rng.random(tokens) < chance, f"{one}.{turn}", rng_name(one, seed))
        for one, chance in enumerate(rng.beta(2, 2, number))
        for turn in range(turns)
    ]


def rng_name(one, seed):
    return int(np.random.SeedSequence([one, seed]).generate_state(1, np.uint64)[0])


def test_the_sums_are_those_of_the_replay_over_all_texts(monkeypatch):
    monkeypatch.setattr(recorded_sums, "CHUNK", 7)
    texts = conversations(20, 2, 1)
    texts = [replace(one, category="ab"[n % 2], prompt_tokens=(10, 300)[n % 3 == 0]) for n, one in enumerate(texts)]
    (found,) = recorded_drafts(texts, (1, 4), 0.0, 0.95)
    for row in found.gammas:
        whole = replay_all(texts, row.gamma)
        assert (row.rounds, row.accepted) == (whole.rounds.sum(), whole.accepted.sum())
        assert row.tokens_per_round.value == pytest.approx(whole.tokens_per_round)
        assert row.survival == pytest.approx(whole.survival)
        assert row.tokens_per_round.low < row.tokens_per_round.value < row.tokens_per_round.high
    for groups in (found.categories, found.prompt_lengths):
        assert sum(group.answers for group in groups) == 40
        assert sum(group.gammas[0].rounds for group in groups) == found.gammas[0].rounds
    assert [group.name for group in found.prompt_lengths] == ["0", "256"]
    assert found.places[0].accepted.value == pytest.approx(np.mean([one.accept.mean() for one in texts]))
    assert found.alpha.value == pytest.approx(found.places[0].accepted.value)


def test_look_ups_have_places_too_and_no_alpha():
    numbers = np.array([3, 0, 2, 5], dtype=np.int32), np.array([1, 0, 0, 5], dtype=np.int32)
    text = as_text(
        BlockScores(*numbers),
        prompt_id="p",
        category=None,
        draft="ngram:n=2",
        repeat=0,
        limit=99,
        prompt_tokens=70_000,
        conversation="ab",
    )
    (found,) = recorded_drafts([text], (1, 2), 0.0, 0.95)
    assert (found.alpha.value, found.places[0].accepted.value) == (None, 0.5)
    assert found.prompt_lengths[0].name == "16384"


def test_turns_of_a_conversation_widen_the_interval_and_their_order_does_not_matter():
    texts = conversations(30, 8, 2)
    (whole,) = recorded_drafts(texts, (2,), 0.0, 0.95)
    alone = [replace(one, conversation=f"{n:016x}") for n, one in enumerate(texts)]
    (each,) = recorded_drafts(alone, (2,), 0.0, 0.95)
    widths = [row.gammas[0].tokens_per_round.high - row.gammas[0].tokens_per_round.low for row in (whole, each)]
    assert widths[0] > 1.5 * widths[1]
    random.Random(0).shuffle(texts)
    (shuffled,) = recorded_drafts(texts, (2,), 0.0, 0.95)
    assert shuffled.gammas[0].tokens_per_round.low == pytest.approx(whole.gammas[0].tokens_per_round.low)


@pytest.mark.full
def test_intervals_hold_the_truth_over_conversations_and_not_over_answers():
    """The planted fault takes answers of a conversation for independent."""
    samples = [conversations(40, 6, seed) for seed in range(60)]
    truth = replay_all([one for texts in samples for one in texts], 2).tokens_per_round

    def covered(name):
        rows = []
        for texts in samples:
            named = [replace(one, conversation=name(n, one)) for n, one in enumerate(texts)]
            rows.append(recorded_drafts(named, (2,), 0.0, 0.95)[0].gammas[0].tokens_per_round)
        return sum(row.low <= truth <= row.high for row in rows)

    assert covered(lambda n, one: one.conversation) >= 53
    assert covered(lambda n, one: f"{n:016x}") < 48


def test_a_draft_with_a_cut_off_of_its_own_is_replayed_with_it():
    texts = [replace(one, confidence=np.linspace(0, 1, 16, dtype=np.float32)) for one in conversations(12, 1, 4)]
    mine = [replace(one, draft="d,cutoff=0.5") for one in texts]
    plain, own = recorded_drafts([*texts, *mine], (4,), 0.0, 0.95)
    (asked,) = recorded_drafts(texts, (4,), 0.5, 0.95)
    assert own.gammas == asked.gammas != plain.gammas
    for cutoff, same in ((0.1, own), (0.7, recorded_drafts(texts, (4,), 0.7, 0.95)[0])):  # the higher one
        assert recorded_drafts(mine, (4,), cutoff, 0.95)[0].gammas == same.gammas


def test_few_conversations_have_no_interval():
    (found,) = recorded_drafts(conversations(9, 4, 3), (1,), 0.0, 0.95)
    assert (found.gammas[0].tokens_per_round.low, found.alpha.low) == (None, None)


@pytest.mark.parametrize("chance", [0.02, 0.97])
def test_intervals_end_where_the_numbers_do(chance):
    """A share is one of 1, and a round of gamma drafts emits 1 to gamma + 1 tokens."""
    rng = np.random.default_rng(5)
    texts = [text(rng.random(16) < (chance if n else 0.5), str(n), rng_name(n, 5)) for n in range(10)]
    (found,) = recorded_drafts(texts, (1, 4), 0.0, 0.95)
    for share in (found.alpha, found.places[0].accepted):
        assert 0 <= share.low < share.value < share.high <= 1
    for row in found.gammas:
        tau = row.tokens_per_round
        assert 1 <= tau.low < tau.value < tau.high <= row.gamma + 1
