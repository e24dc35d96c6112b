"""Replay equals the loop: exactly under greedy, in expectation when sampling, and by enumerating all outcomes."""

from __future__ import annotations

import itertools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import examples
from fake_markov import FakeMarkov
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, lean, model_drafter, near_copy, run, text_of, tiny_llama

from specbench.acceptance import replay as replay_module
from specbench.acceptance.metrics import count
from specbench.acceptance.replay import Positions, replay
from specbench.acceptance.rules import distribution
from specbench.acceptance.score import score
from specbench.acceptance.scores import Scores
from specbench.backends.local.cached import CachedModel
from specbench.drafters.model import ModelDrafter
from specbench.records import Sampling

PLAIN = tiny_llama(64, seed=1)
TARGET, NEAR = lean(PLAIN), lean(near_copy(PLAIN, noise=0.1))
NEARER = lean(near_copy(PLAIN, noise=0.03))  # accepted often enough to carry ends of sequence into drafts


def positions(scores, limit):
    return text_of(scores, limit)


def scored(target, draft, prompt, output, *, limit, vocab, sampling=GREEDY, eos=frozenset()):
    return positions(score(target, draft, prompt, output, vocab_size=vocab, sampling=sampling, eos=eos), limit)


def cached(model):
    return CachedModel(model, 512)


@examples(60)
@given(
    prompt=st.lists(st.integers(0, 63), min_size=1, max_size=10),
    gamma=st.integers(1, 12),
    limit=st.integers(1, 90),
    eos=st.sets(st.integers(0, 63), max_size=4),
)
def test_greedy_replay_is_the_loop_round_by_round(prompt, gamma, limit, eos):
    alone = run(TARGET, None, prompt, eos=eos, max_new_tokens=limit)
    drafter = model_drafter(NEAR, vocab_size=64, sampling=GREEDY, eos=eos)
    live = count(run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit).rounds, gamma)
    text = scored(None, cached(NEAR), prompt, alone.tokens, limit=limit, vocab=64, eos=eos)
    found = replay([text], gamma)
    assert found.rounds.tolist() == [live.rounds]
    assert found.accepted.tolist() == [live.accepted]
    assert found.rejections.tolist() == [live.rejections]
    assert found.survived[0].tolist() == list(live.survived)
    # off the text the draft may meet an end of sequence that replay cannot see
    assert found.drafted_low[0] <= live.drafted <= found.drafted[0]
    if not eos:
        assert found.reached[0].tolist() == list(live.reached)
        assert found.survival == live.survival


@pytest.mark.full
def test_an_unseen_end_of_sequence_is_the_only_thing_replay_misses():
    eos, gamma, limit = {5, 9}, 6, 80
    missed = 0
    for first in range(12):
        prompt = [first, 3]
        alone = run(TARGET, None, prompt, eos=eos, max_new_tokens=limit)
        drafter = model_drafter(NEAR, vocab_size=64, sampling=GREEDY, eos=eos)
        live = count(run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit).rounds, gamma)
        text = scored(None, cached(NEAR), prompt, alone.tokens, limit=limit, vocab=64, eos=eos)
        missed += replay([text], gamma).drafted[0] != live.drafted
    assert 0 < missed < 12  # so the bound in the test above is needed, and not always


@examples(60)
@given(data=st.data(), gamma=st.integers(1, 4), length=st.integers(1, 7), slack=st.integers(0, 3), ended=st.booleans())
def test_sampling_replay_is_the_sum_over_all_ways_the_rounds_can_fall(data, gamma, length, slack, ended):
    chances = st.floats(0, 1, width=32)
    accept = data.draw(st.lists(chances, min_size=length, max_size=length))
    confidence = data.draw(st.lists(chances, min_size=length, max_size=length))
    cutoff = data.draw(st.sampled_from([0.0, 0.4]))
    limit = length + 1 + (slack if ended else 0)
    columns = (np.array(c, dtype=np.float32) for c in (accept, accept, confidence, accept, accept))
    text = text_of(Scores(*columns, ends=np.zeros(length, dtype=bool)), limit)
    found = replay([text], gamma, cutoff)
    rounds, accepted = enumerated(text, gamma, cutoff)
    assert found.rounds[0] == pytest.approx(rounds, abs=1e-6)
    assert found.accepted[0] == pytest.approx(accepted, abs=1e-6)


def enumerated(text, gamma, cutoff):
    """Expected rounds and accepted drafts from every combination of per-position outcomes, walked one by one."""
    n = len(text.accept)
    rounds = accepted = 0.0
    for outcome in itertools.product([True, False], repeat=n):
        probability = np.prod([a if ok else 1 - a for a, ok in zip(text.accept.astype(float), outcome, strict=True)])
        if probability == 0:
            continue
        out, steps, kept = 1, 0, 0
        while out < n + 1:
            steps += 1
            k = min(gamma, text.limit - out - 1)
            run_length = 0
            while run_length < k and out + run_length < n + 1:
                i = out + run_length - 1
                if text.confidence[i] < cutoff or not outcome[i]:
                    break
                run_length += 1
            kept += run_length
            out += run_length + 1
        rounds += probability * steps
        accepted += probability * kept
    return rounds, accepted


@pytest.mark.full
@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_p=0.9)], ids=str)
@pytest.mark.parametrize("gamma", [1, 3])
def test_sampling_replay_agrees_with_the_loop(sampling, gamma):
    target, draft, prompt, eos, limit = FakeMarkov.random(6, 1), FakeMarkov.random(6, 2), [0, 1], {5}, 40
    drafter = ModelDrafter(draft, vocab_size=6, sampling=sampling, eos=eos)
    texts, live_tau = [], []
    for seed in range(400):
        alone = run(target, None, prompt, sampling=sampling, eos=eos, max_new_tokens=limit, seed=seed)
        texts.append(scored(target, draft, prompt, alone.tokens, limit=limit, vocab=6, sampling=sampling, eos=eos))
        live = run(target, drafter, prompt, gamma=gamma, sampling=sampling, eos=eos, max_new_tokens=limit, seed=seed)
        live_tau.append((len(live.rounds), sum(r.accepted for r in live.rounds)))
    found = replay(texts, gamma)
    rounds, accepted = np.array(live_tau).sum(0)
    live = 1 + accepted / rounds
    per_prompt = np.array([a - r * (live - 1) for r, a in live_tau])
    error = per_prompt.std() * np.sqrt(len(per_prompt)) / rounds
    assert found.tokens_per_round == pytest.approx(live, abs=4 * error)
    assert error < 0.05


def test_overlap_is_alpha():
    target, draft = FakeMarkov.random(5, 1), FakeMarkov.random(5, 2)
    sampling = Sampling(1.0)
    output = [0, 1, 2, 3, 4, 0, 2]
    text = scored(target, draft, [0], output, limit=7, vocab=5, sampling=sampling)
    p = distribution(target.after([0, 0, 1])[None], sampling)[0]
    q = distribution(draft.after([0, 0, 1])[None], sampling)[0]
    assert text.overlap[1] == pytest.approx(float(torch.minimum(p, q).sum()))
    assert text.accept[1] == pytest.approx(min(1.0, float(q[2] / p[2])))
    assert np.exp(text.log_p[1]) == pytest.approx(float(p[2]))
    assert np.exp(text.log_q[1]) == pytest.approx(float(q[2]))
    assert text.confidence[1] == pytest.approx(float(q.max()))


def test_chunks_make_no_difference(monkeypatch):
    output = run(TARGET, None, [1, 2], max_new_tokens=30).tokens
    whole = scored(TARGET_CACHED, cached(NEAR), [1, 2], output, limit=30, vocab=64, sampling=Sampling(0.7))
    monkeypatch.setattr("specbench.acceptance.score.CHUNK", 7)
    pieces = scored(TARGET_CACHED, cached(NEAR), [1, 2], output, limit=30, vocab=64, sampling=Sampling(0.7))
    np.testing.assert_allclose(whole.accept, pieces.accept, atol=1e-5)
    monkeypatch.setattr(replay_module, "CHUNK", 2)
    three = [whole, pieces, whole]
    assert replay(three, 4).rounds.tolist() == pytest.approx(3 * replay([whole], 4).rounds.tolist(), rel=1e-4)


TARGET_CACHED = cached(TARGET)


def test_texts_are_replayed_together_each_under_its_own_limit():
    prompts, limits = ([1], [5, 9], [3]), (9, 30, 12)
    outputs = [
        run(TARGET, None, prompt, max_new_tokens=limit).tokens for prompt, limit in zip(prompts, limits, strict=True)
    ]
    texts = [
        scored(None, cached(NEAR), prompt, output, limit=limit, vocab=64)
        for prompt, output, limit in zip(prompts, outputs, limits, strict=True)
    ]
    for gamma in (1, 4, 12):
        together, alone = replay(texts, gamma), [replay([text], gamma) for text in texts]
        for name in ("rounds", "accepted", "rejections", "drafted", "drafted_low", "catch_ups", "started", "survived"):
            each = np.concatenate([getattr(one, name) for one in alone])
            np.testing.assert_array_equal(getattr(together, name), each)


def test_nothing_to_replay():
    one = scored(None, cached(NEAR), [1], [7], limit=1, vocab=64)
    found = replay([one], 3)
    assert (found.rounds.sum(), found.tokens_per_round, found.survival) == (0, None, (None, None, None))
    assert replay([], 3).tokens_per_round is None


def mutants():
    """Off-by-one bugs in the walk, as source edits."""
    return {
        "no limit": ("k = np.clip(limit - i - 1, 0, gamma)", "k = np.full(len(texts), gamma)"),
        "limit without bonus": ("k = np.clip(limit - i - 1, 0, gamma)", "k = np.clip(limit - i, 0, gamma)"),
        "bonus forgotten": ("start[:, i + gamma + 1] += kept", "start[:, i + gamma] += kept"),
        "limited bonus forgotten": ("start[:, at + 1] += full", "start[:, at] += full"),
        "correction forgotten": ("start[:, at + 1] += open_ - kept", "start[:, at] += open_ - kept"),
        "end of text ignored": ("open_ = kept * (at < size)", "open_ = kept"),
        "shifted by one": ("row[1 : len(column) + 1]", "row[: len(column)]"),
        "own end of sequence ignored": ("refused * ends[entry]", "0 * refused"),
    }


def broken_replay(old, new):
    """The replay of a module whose source has `old` replaced by `new`."""
    source = Path(replay_module.__file__).read_text()
    assert source.count(old) == 1
    module = types.ModuleType("broken_replay")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(source.replace(old, new), "broken_replay", "exec"), vars(module))
    vars(module).update(Positions=Positions)  # the texts are of the real class
    return module.replay


@pytest.fixture(scope="module")
def live_cases():
    """Texts of the target with, for each, what the loop really did with them."""
    cases = []
    for first, end, gamma, limit in itertools.product(range(6), [None, 4, 7], [1, 4], [12, 20]):
        draft = (NEAR, NEARER)[first % 2]
        # ends that the text really meets, whether in a draft, as a bonus or as a correction
        free = run(TARGET, None, [first, 3], max_new_tokens=limit).tokens
        own = run(draft, None, [first, 3], max_new_tokens=limit).tokens
        eos = set() if end is None else {free[end], free[end + 4], own[2]}
        alone = run(TARGET, None, [first, 3], eos=eos, max_new_tokens=limit)
        drafter = model_drafter(draft, vocab_size=64, sampling=GREEDY, eos=eos)
        live = count(run(TARGET, drafter, [first, 3], gamma=gamma, eos=eos, max_new_tokens=limit).rounds, gamma)
        cases.append(
            (scored(None, cached(draft), [first, 3], alone.tokens, limit=limit, vocab=64, eos=eos), gamma, live)
        )
    return cases


def agrees(walk, text, gamma, live):
    try:
        found = walk([text], gamma)
    except IndexError:
        return False
    exact = (found.rounds[0], found.accepted[0]) == (live.rounds, live.accepted)
    return exact and found.survived[0].tolist() == list(live.survived) and found.drafted[0] == live.drafted


@pytest.mark.parametrize("name", mutants())
def test_a_planted_off_by_one_is_caught(name, live_cases):
    walk = broken_replay(*mutants()[name])
    honest = [agrees(replay, *case) for case in live_cases]
    assert sum(honest) >= 0.9 * len(live_cases)  # the loop may have met an end of sequence off the text
    assert sum(agrees(walk, *case) for case in live_cases) < sum(honest)
