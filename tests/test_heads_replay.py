"""The replay of a head: one pass over the target's own text says what the loop would do at every gamma."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heads import EVEN, PLAIN, PROMPT, TARGET, drafter_for, head_of, naive
from tiny import GREEDY, run, text_of
from tiny_heads import VOCAB, head_tensors, save_head

from specbench.acceptance import score as scoring
from specbench.acceptance.metrics import count
from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.acceptance.replay import replay
from specbench.acceptance.rules import distribution
from specbench.acceptance.score import score_head
from specbench.acceptance.scores import Scores, match_blocks
from specbench.backends.local.headreader import HeadReader
from specbench.drafters import NgramSpec, parse_draft
from specbench.drafters.around import CombinedDrafter, NgramDrafter
from specbench.records import Sampling

NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")
DEPTHS = 6


def scored(head, output, *, prompt=PROMPT, limit=32, sampling=GREEDY, eos=(), depths=DEPTHS, blocks=None):
    reader, _ = drafter_for(head)
    memory = HeadReader(head, 512)
    found = score_head(reader, reader.states.read, memory, prompt, output, depths=depths, sampling=sampling, eos=eos)
    return text_of(replace(found, blocks=blocks), limit)


def same_rounds(found, live, gamma):
    counts = count(live.rounds, gamma)
    assert found.rounds.tolist() == [counts.rounds]
    assert found.accepted.tolist() == [counts.accepted]
    assert found.survived[0].tolist() == list(counts.survived)
    assert found.drafted_low[0] <= counts.drafted <= found.drafted[0]


@pytest.fixture(params=[0.1, 0.4, 3.0], ids="noise {}".format)
def head(request, tmp_path):
    return head_of(save_head(tmp_path, PLAIN, request.param, EVEN if request.param == 0.4 else None))


@pytest.mark.parametrize(("prompt", "eos"), [(PROMPT, ()), ([7], ()), (PROMPT, (4, 18))])
def test_rounds_are_those_of_the_loop(head, prompt, eos):
    alone = run(TARGET, None, prompt, eos=set(eos), max_new_tokens=40).tokens
    text = scored(head, alone, prompt=prompt, eos=eos, limit=40)
    for gamma in range(1, DEPTHS + 1):
        reader, drafter = drafter_for(head, eos=eos)
        live = run(reader, drafter, prompt, gamma=gamma, eos=set(eos), max_new_tokens=40)
        assert live.tokens == alone
        same_rounds(replay([text], gamma), live, gamma)


def test_heads_here_are_partly_right(tmp_path):
    """Else the test above says nothing: what a head drafts deeper must depend on where its round began."""
    head = head_of(save_head(tmp_path, PLAIN, 0.1))
    accept = scored(head, run(TARGET, None, PROMPT, max_new_tokens=200).tokens).accept
    first, second = accept[:-1, 0], accept[:-1, 1]
    assert 0.1 < first.mean() < 0.9
    assert 0.1 < second.mean() < 0.9
    assert (accept[1:, 0] != second).mean() > 0.1


@pytest.mark.parametrize("cutoff", [0.2, 0.5])
def test_a_cut_off_stops_both_alike(head, cutoff):
    alone = run(TARGET, None, PROMPT).tokens
    reader, drafter = drafter_for(head, cutoff=cutoff)
    live = run(reader, drafter, PROMPT, gamma=4)
    same_rounds(replay([scored(head, alone)], 4, cutoff), live, 4)


def test_a_look_up_before_the_head(head):
    spec = NgramSpec(2, 1)
    alone = run(TARGET, None, PROMPT, max_new_tokens=48).tokens
    found = match_blocks(NgramDrafter(spec, eos=()), PROMPT, alone, 8)
    blocks = found
    reader, drafter = drafter_for(head)
    live = run(reader, CombinedDrafter(NgramDrafter(spec, eos=()), drafter), PROMPT, gamma=3, max_new_tokens=48)
    assert live.tokens == alone
    same_rounds(replay([scored(head, alone, limit=48, blocks=blocks)], 3), live, 3)


@pytest.mark.full
def test_every_entry_is_that_of_a_pass_of_its_own(tmp_path):
    """At temperature 0.9, against transformers' hidden states and no cache, place by place and depth by depth."""
    sampling = Sampling(0.9, top_k=12)
    tensors = head_tensors(PLAIN, 0.2, EVEN, sharp=0.5)
    head = head_of(save_head(tmp_path, PLAIN, drafted=EVEN, tensors=tensors))
    output = run(TARGET, None, PROMPT, sampling=sampling, max_new_tokens=9).tokens
    text = scored(head, output, sampling=sampling, depths=4)
    p = distribution(PLAIN(torch.tensor([[*PROMPT, *output]])).logits[0], sampling)
    for i in range(1, len(output)):
        for j in range(4):
            if i + j >= len(output):
                assert text.accept[i - 1, j] == 0
                continue
            x, token = [*PROMPT, *output[:i]], output[i + j]
            q = distribution(naive(head, PLAIN, x, output[i : i + j])[None], sampling)[0, token]
            expected = min(1.0, float(q / p[len(x) + j - 1, token]))
            assert text.accept[i - 1, j] == pytest.approx(expected, abs=2e-5)


@pytest.mark.full
def test_sampled_rounds_are_expected_ones(tmp_path):
    """Rounds of 30 texts, live and replayed, within sampling error."""
    sampling, texts, gamma = Sampling(0.8, top_p=0.9), 30, 3
    head = head_of(save_head(tmp_path, PLAIN, 0.1))
    live, expected = [], []
    for seed in range(texts):
        reader, drafter = drafter_for(head, sampling=sampling)
        out = run(reader, drafter, PROMPT, gamma=gamma, sampling=sampling, max_new_tokens=16, seed=seed)
        live.append(len(out.rounds))
        alone = run(TARGET, None, PROMPT, sampling=sampling, max_new_tokens=16, seed=texts + seed).tokens
        expected.append(float(replay([scored(head, alone, limit=16, sampling=sampling)], gamma).rounds[0]))
    error = np.sqrt((np.var(live) + np.var(expected)) / texts)
    assert abs(np.mean(live) - np.mean(expected)) < 4 * error


def test_chunks_do_not_matter(head, monkeypatch):
    output = run(TARGET, None, PROMPT, max_new_tokens=30).tokens
    whole = scored(head, output)
    monkeypatch.setattr(scoring, "CHUNK", 7)
    for name in NUMBERS:
        assert np.allclose(getattr(whole, name), getattr(scored(head, output), name), atol=1e-3, equal_nan=True)


def test_on_disk(head, tmp_path):
    text = scored(head, run(TARGET, None, PROMPT).tokens)
    with PositionWriter(tmp_path) as writer:
        writer.append(text)
    (again,) = read_positions(tmp_path)
    assert again.longest == DEPTHS
    for name in NUMBERS:
        assert np.array_equal(getattr(again, name), getattr(text, name), equal_nan=True)


def test_no_longer_rounds_than_were_scored(head):
    with pytest.raises(ValueError, match="up to gamma 6, not 7"):
        replay([scored(head, run(TARGET, None, PROMPT).tokens)], DEPTHS + 1)


def test_a_draft_vocabulary_bounds_what_is_accepted(tmp_path):
    head = head_of(save_head(tmp_path, PLAIN, 0.1, EVEN))
    output = run(TARGET, None, PROMPT, sampling=Sampling(1.0), max_new_tokens=60).tokens
    accept = scored(head, output, sampling=Sampling(1.0)).accept[:, 0]
    outside = np.array([token not in EVEN for token in output[1:]])
    assert not accept[outside].any()
    assert accept[~outside].any()
    assert max(output) < VOCAB


@pytest.mark.full
def test_a_head_that_drafts_greedily_is_accepted_where_it_is_the_texts_own(tmp_path):
    """At a temperature: live and replayed rounds within sampling error, and no draft is ever half accepted."""
    spec, sampling, texts = parse_draft("head,sample=greedy"), Sampling(0.7), 40
    head = head_of(save_head(tmp_path, PLAIN, 0.1))
    live, expected = [], []
    for seed in range(texts):
        reader, drafter = drafter_for(head, sampling=spec.sampling(sampling))
        out = run(reader, drafter, PROMPT, gamma=2, sampling=sampling, max_new_tokens=16, seed=seed)
        live.append(len(out.rounds))
        text = run(TARGET, None, PROMPT, sampling=sampling, max_new_tokens=16, seed=texts + seed).tokens
        record = scored(head, text, limit=16, sampling=spec.sampling(sampling))
        assert set(np.unique(record.accept)) <= {0.0, 1.0}
        expected.append(float(replay([record], 2).rounds[0]))
    error = np.sqrt((np.var(live) + np.var(expected)) / texts)
    assert abs(np.mean(live) - np.mean(expected)) < 4 * error


def expected(accept, limit, gamma):
    """Rounds and accepted drafts, by recursion over the ways that the rounds can fall."""
    n = len(accept)
    rounds, accepted, mass = 0.0, 0.0, {1: 1.0}
    for i in range(1, n + 1):
        here = mass.pop(i, 0.0)
        rounds += here
        k = min(gamma, limit - i - 1)
        for kept in range(k + 1):
            if i + kept > n + 1:
                break
            p = np.prod([accept[i - 1, j] for j in range(kept)])
            p *= 1 - accept[i - 1, kept] if kept < k and i + kept <= n else 1.0
            accepted += here * p * kept
            mass[i + kept + 1] = mass.get(i + kept + 1, 0.0) + here * p
    return rounds, accepted


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    gamma=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    half=st.booleans(),
    room=st.integers(0, 3),
)
def test_the_walk_takes_each_draft_at_the_depth_of_its_round(n, gamma, seed, half, room):
    accept = np.random.default_rng(seed).random((n, 4))
    accept = (accept if half else accept < 0.6).astype(np.float32)
    for i in range(n):
        accept[i, n - i :] = 0
    limit = n + 1 + room
    nothing, sure = np.zeros(n, dtype=np.float32), np.ones(accept.shape, dtype=np.float32)
    text = text_of(Scores(accept, nothing, sure, nothing, nothing, sure < 0), limit)
    found = replay([text], gamma)
    rounds, accepted = expected(accept, limit, gamma)
    assert found.rounds[0] == pytest.approx(rounds, abs=1e-5)
    assert found.accepted[0] == pytest.approx(accepted, abs=1e-5)
