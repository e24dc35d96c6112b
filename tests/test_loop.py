"""The loop keeps the target's text, counts what happened, and never runs past the end."""

from __future__ import annotations

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, model_drafter, near_copy, run, tiny_llama
from transformers import GenerationConfig

from specbench.acceptance.loop import Proposal
from specbench.errors import EngineError
from specbench.records import Round, Sampling

TARGET = tiny_llama(64, seed=1)
NEAR = near_copy(TARGET, noise=0.1)
FAR = tiny_llama(64, seed=2)
PROMPT = [3, 14, 15, 9, 26, 5]


def transformers_greedy(prompt: list[int], max_new_tokens: int, eos: set[int]) -> list[int]:
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(eos) or None, pad_token_id=-1
    )
    ids = torch.tensor([prompt])
    out = TARGET.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


@examples(60)
@given(
    prompt=st.lists(st.integers(0, 63), min_size=1, max_size=12),
    gamma=st.integers(1, 9),
    max_new_tokens=st.integers(1, 40),
    eos=st.sets(st.integers(0, 63), max_size=4),
    draft=st.sampled_from(["near", "far", "self"]),
)
def test_greedy_text_is_the_text_of_transformers_generate(prompt, gamma, max_new_tokens, eos, draft):
    drafter = model_drafter({"near": NEAR, "far": FAR, "self": TARGET}[draft], vocab_size=64, sampling=GREEDY, eos=eos)
    got = run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=max_new_tokens)
    alone = run(TARGET, None, prompt, gamma=gamma, eos=eos, max_new_tokens=max_new_tokens)
    assert got.tokens == alone.tokens == transformers_greedy(prompt, max_new_tokens, eos)
    assert got.finish == alone.finish == ("eos" if got.tokens[-1] in eos else "length")
    # emitted = accepted + one per round, less the bonus that an accepted end of sequence leaves no room for
    ended_in_draft = bool(got.rounds) and got.finish == "eos" and got.rounds[-1].accepted == got.rounds[-1].drafted > 0
    emitted = sum(r.accepted for r in got.rounds) + len(got.rounds)
    assert len(got.tokens) - 1 in ({emitted, emitted - 1} if ended_in_draft else {emitted})
    assert all(0 <= r.accepted <= r.drafted <= gamma for r in got.rounds)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.9), Sampling(1.0, top_k=5)])
@pytest.mark.parametrize("gamma", [1, 2, 3, 7])
def test_a_model_drafting_for_itself_accepts_everything(sampling, gamma):
    drafter = model_drafter(TARGET, vocab_size=64, sampling=sampling, eos=set())
    got = run(TARGET, drafter, PROMPT, gamma=gamma, sampling=sampling, max_new_tokens=1 + 5 * (gamma + 1))
    assert got.rounds == [Round(gamma, gamma)] * 5


@pytest.mark.full
def test_a_near_copy_is_accepted_more_often_than_a_stranger():
    def accepted(model):
        drafter = model_drafter(model, vocab_size=64, sampling=GREEDY, eos=set())
        got = run(TARGET, drafter, PROMPT, gamma=4, max_new_tokens=120)
        return sum(r.accepted for r in got.rounds)

    assert accepted(NEAR) > 3 * max(1, accepted(FAR))


class ScriptedDrafter:
    """A fake that drafts from a list of texts it was told; it may lie."""

    def __init__(self, *proposals):
        self.proposals = list(proposals)
        self.asked = []

    def begin(self, prompt):
        self.asked = []

    def propose(self, x, k, generator):
        self.asked.append((len(x), k))
        return Proposal(self.proposals.pop(0)[:k] if self.proposals else [])


def test_rounds_are_counted_by_hand():
    text = run(TARGET, None, PROMPT, max_new_tokens=12).tokens
    wrong = [(t + 1) % 64 for t in text]
    # first token from prefill; then accept 2 of 2 + bonus, refuse at once, accept 1 of 3, no draft at all
    drafter = ScriptedDrafter(text[1:3], wrong[4:6], [text[5], wrong[6], text[7]], [])
    got = run(TARGET, drafter, PROMPT, gamma=3, max_new_tokens=8)
    assert got.tokens == text[:8]
    # five tokens are out after two rounds: the third may draft two of its three, the last none
    assert got.rounds == [Round(2, 2), Round(2, 0), Round(2, 1), Round(0, 0)]
    assert drafter.asked[0] == (len(PROMPT) + 1, 3)


def test_the_last_round_drafts_no_further_than_the_limit():
    text = run(TARGET, None, PROMPT, max_new_tokens=12).tokens
    drafter = ScriptedDrafter(text[1:6], text[7:12])
    got = run(TARGET, drafter, PROMPT, gamma=5, max_new_tokens=9)
    # 1 from prefill, 6 from the first round; two are left, so one is drafted and the bonus is the other
    assert got.rounds == [Round(5, 5), Round(1, 1)]
    assert len(got.tokens) == 9
    assert [k for _, k in drafter.asked] == [5, 1]


def test_an_accepted_end_of_sequence_is_accepted_and_gives_no_bonus():
    text = run(TARGET, None, PROMPT, max_new_tokens=12).tokens
    position = next(i for i in range(2, 12) if text[i] not in text[:i])
    eos = {text[position]}
    drafter = ScriptedDrafter(text[1 : position + 1])
    got = run(TARGET, drafter, PROMPT, gamma=12, eos=eos, max_new_tokens=30)
    assert got.tokens == text[: position + 1]
    assert got.finish == "eos"
    assert got.rounds == [Round(position, position)]


def test_sampled_text_does_not_depend_on_who_else_ran_before():
    sampling = Sampling(0.8)
    drafter = model_drafter(NEAR, vocab_size=64, sampling=sampling, eos=set())
    first = run(TARGET, drafter, PROMPT, sampling=sampling, seed=5)
    run(TARGET, drafter, [1, 2, 3], sampling=sampling, seed=6)
    again = run(TARGET, drafter, PROMPT, sampling=sampling, seed=5)
    assert first.tokens == again.tokens
    assert first.rounds == again.rounds


def test_times_add_up_to_the_total():
    drafter = model_drafter(NEAR, vocab_size=64, sampling=GREEDY, eos=set())
    times = run(TARGET, drafter, PROMPT).times
    assert times.prefill_s + times.draft_prefill_s + times.decode_s == pytest.approx(times.total_s, rel=1e-9)
    assert min(times.prefill_s, times.draft_prefill_s, times.draft_s, times.verify_s, times.other_s) > 0
    alone = run(TARGET, None, PROMPT).times
    assert alone.draft_s == alone.draft_prefill_s == 0.0


def test_a_draft_with_a_padded_vocabulary_never_drafts_padding():
    wide = tiny_llama(80, seed=1)
    drafter = model_drafter(wide, vocab_size=64, sampling=Sampling(1.0), eos=set())
    got = run(TARGET, drafter, PROMPT, sampling=Sampling(1.0), max_new_tokens=60)
    assert max(got.tokens) < 64
    assert sum(r.drafted for r in got.rounds) > 0


def test_a_narrower_draft_drafts_until_it_meets_a_token_it_has_not():
    narrow = near_copy(tiny_llama(48, seed=1), noise=0)
    drafter = model_drafter(narrow, vocab_size=64, sampling=Sampling(1.0), eos=set())
    drafter.begin(PROMPT)
    proposal = drafter.propose([*PROMPT, 1], 4, torch.Generator().manual_seed(0))
    assert proposal.q.shape == (4, 64)
    assert float(proposal.q[:, 48:].sum()) == 0.0
    with pytest.raises(EngineError, match=r"token id 63.*48"):
        drafter.propose([*PROMPT, 1, 63], 4, torch.Generator().manual_seed(0))
