"""Prompt lookup: what is proposed, against transformers' own, and replay against the loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from test_run import sweep
from tiny import GREEDY, run, text_of, tiny_llama
from transformers import GenerationConfig
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from specbench.acceptance.metrics import count
from specbench.acceptance.replay import replay
from specbench.acceptance.scores import agreed, match_blocks
from specbench.analysis.summarise import summarise
from specbench.drafters import NgramSpec
from specbench.drafters.around import NgramDrafter
from specbench.drafters.lookup import RecentLookUp
from specbench.records import Sampling

TARGET = tiny_llama(12, seed=3)  # a small vocabulary repeats itself


def proposal(spec, x, k, eos=frozenset()):
    drafter = NgramDrafter(spec, eos=eos)
    drafter.begin(x[:1])
    return drafter.propose(x, k).tokens


def test_the_longest_match_wins_and_its_earliest_place_is_copied():
    #        0  1  2  3  4  5  6  7  8  9
    text = [7, 1, 2, 9, 1, 2, 5, 3, 1, 2]
    assert proposal(NgramSpec(2), text, 3) == [9, 1, 2]  # "1 2" first stood at 1
    assert proposal(NgramSpec(3), [3, *text], 2) == [9, 1]  # "3 1 2" stood nowhere before: fall back to "1 2"
    assert proposal(NgramSpec(3), [*text[4:], 9, 3, 1, 2], 9) == [9, 3, 1, 2]  # "3 1 2" did
    assert proposal(NgramSpec(3, shortest=3), [1, 2, 4, 1, 2], 4) == []
    assert proposal(NgramSpec(3), [1, 2, 3], 4) == []


def test_no_draft_goes_past_an_end_of_sequence():
    assert proposal(NgramSpec(1), [1, 5, 9, 6, 1], 4, eos={9}) == [5, 9]


@examples(200)
@given(x=st.lists(st.integers(0, 5), min_size=2, max_size=40), n=st.integers(1, 4), k=st.integers(1, 8))
def test_proposals_are_those_of_transformers(x, n, k):
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=None, num_output_tokens=k, max_matching_ngram_size=n, max_length=10_000, vocab_size=6
    )
    ids = torch.tensor([x])
    candidates, _ = theirs.get_candidates(ids)
    assert proposal(NgramSpec(n), x, k) == candidates[0, len(x) :].tolist()


def recent(x, n, gamma):
    """llama.cpp's ngram-simple, read off its source: tokens before the last are its history, place 0 is no match."""
    history, at = x[:-1], len(x) - 2 - n
    while at > 0 and [*history, x[-1]][at : at + n] != x[len(x) - n :]:
        at -= 1
    found = history[at + n : at + n + gamma] if at > 0 else []
    return found if len(found) >= n else []


@examples(300)
@given(x=st.lists(st.integers(0, 3), min_size=2, max_size=40), n=st.integers(1, 4), gamma=st.integers(1, 8))
def test_the_latest_place_of_exactly_n_is_copied_as_llamacpp_does(x, n, gamma):
    prompt, output = x[: len(x) // 2], x[len(x) // 2 :]
    found = match_blocks(RecentLookUp(n, eos=()), prompt, output, 64)
    text = text_of(found, 99)
    expected, i = [], 1
    while i < len(output):
        drafted = recent([*prompt, *output[:i]], n, gamma)[: 99 - i - 1]
        kept = agreed(drafted, output, i)
        expected.append((len(drafted), kept))
        i += kept + 1
    again = replay([text], gamma)
    assert again.rounds[0] == len(expected)
    assert again.reached.sum() == sum(drafted for drafted, _ in expected)
    assert again.accepted[0] == sum(kept for _, kept in expected)


def test_an_index_grown_token_by_token_is_the_index_of_the_whole():
    x = np.random.default_rng(0).integers(0, 4, 60).tolist()
    grown = NgramDrafter(NgramSpec(3), eos=set())
    grown.begin(x[:5])
    for end in range(6, 61):
        assert grown.propose(x[:end], 5).tokens == proposal(NgramSpec(3), x[:end], 5)


@examples(40)
@given(
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    gamma=st.integers(1, 9),
    limit=st.integers(1, 60),
    eos=st.sets(st.integers(0, 11), max_size=2),
    sampling=st.sampled_from([GREEDY, Sampling(0.7)]),
)
def test_greedy_text_is_kept_and_replay_is_the_loop(prompt, gamma, limit, eos, sampling):
    drafter = NgramDrafter(NgramSpec(3), eos=eos)
    live = run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit, sampling=sampling)
    if sampling.greedy:
        assert live.tokens == run(TARGET, None, prompt, eos=eos, max_new_tokens=limit).tokens
    # one-hot drafts are accepted exactly where they match the text, at any temperature: replay the live text itself
    found = match_blocks(drafter, prompt, live.tokens, 64)
    again = replay([text_of(found, limit)], gamma)
    counts = count(live.rounds, gamma)
    assert again.rounds.tolist() == [counts.rounds]
    assert again.accepted.tolist() == [counts.accepted]
    assert again.rejections.tolist() == [counts.rejections]
    assert again.drafted.tolist() == again.drafted_low.tolist() == [counts.drafted]
    assert again.reached[0].tolist() == list(counts.reached)
    assert again.survived[0].tolist() == list(counts.survived)


def test_rounds_are_those_of_transformers_prompt_lookup(monkeypatch):
    from specbench.records import Round

    rounds = []

    def watch(self, input_ids, scores, num_matches):
        rounds.append(Round(scores.shape[1] - 1, int(num_matches)))

    monkeypatch.setattr(PromptLookupCandidateGenerator, "update_candidate_strategy", watch)
    prompt = [1, 2, 3, 4, 1, 2, 3]
    drafter = NgramDrafter(NgramSpec(2), eos=set())
    ours = run(TARGET, drafter, prompt, gamma=4, max_new_tokens=40)
    ids = torch.tensor([[*prompt, ours.tokens[0]]])
    config = GenerationConfig(
        max_new_tokens=39, do_sample=False, pad_token_id=-1, prompt_lookup_num_tokens=4, max_matching_ngram_size=2
    )
    out = TARGET.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert out[0, len(prompt) :].tolist() == ours.tokens
    assert sum(r.accepted for r in ours.rounds) > 5
    # within gamma of the limit transformers still proposes four where we leave room for the bonus
    ends = list(itertools.accumulate(r.accepted + 1 for r in ours.rounds))
    free = sum(end <= 39 - 4 for end in ends)
    assert ours.rounds[:free] == rounds[:free]
    assert free > 15


@pytest.mark.full
def test_two_drafts_share_one_baseline_in_a_run(lab, tmp_path):
    stored = sweep(lab, tmp_path, draft=[str(lab.near), "ngram:n=2"], gammas=(2,), limit=4)
    summary = summarise(stored)
    assert [draft.draft for draft in summary.drafts] == [str(lab.near), "ngram:n=2"]
    assert len([t for t in stored.trials if not t.warmup]) == 4 * 4
    for draft in summary.drafts:
        (row,) = draft.gammas
        assert row.replay_rounds == row.rounds
        assert row.identical_prompts == 4
