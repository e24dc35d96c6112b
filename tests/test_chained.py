"""Drafts that stay on the device until the round is judged: the same rounds as one token at a time, fewer waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import examples, full
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, lean, near_copy, run, tiny_llama
from torch import Tensor

from specbench.acceptance import rules
from specbench.acceptance.loop import Generation
from specbench.acceptance.rules import accept_greedy, accept_sampled, judged_greedy, judged_sampled
from specbench.backends.local.cached import CachedModel
from specbench.drafters import model
from specbench.drafters.model import ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.records import Sampling

PLAIN = tiny_llama(64, seed=1, num_hidden_layers=3)
TARGET, DRAFT = lean(PLAIN), lean(near_copy(PLAIN, noise=0.3))
SAMPLED = Sampling(temperature=0.8, top_p=0.95)


def trial(kind: str, *, chained: bool, sampling: Sampling, eos: set[int], seed: int = 0, **more: Any) -> Generation:
    reader = CachedModel(TARGET, 512)
    rule: dict[str, Any] = {"vocab_size": 64, "sampling": sampling, "eos": eos, "chained": chained}
    skip = SkipDrafter(reader.sharing(first_layers(TARGET, 2)), **rule)
    drafter = skip if kind == "skip" else ModelDrafter(CachedModel(DRAFT, 512), **rule)
    return run(reader, drafter, [1, 2, 3, 4], gamma=4, sampling=sampling, eos=eos, max_new_tokens=60, seed=seed, **more)


@pytest.mark.parametrize("kind", ["skip", *full("model")])
@pytest.mark.parametrize("sampling", [GREEDY, *full(SAMPLED)])
def test_the_same_rounds_as_one_token_at_a_time(kind, sampling):
    for seed in range(4):
        one, other = (trial(kind, chained=c, sampling=sampling, eos=set(), seed=seed) for c in (False, True))
        assert one.tokens == other.tokens and one.rounds == other.rounds
        assert 0 < sum(r.accepted for r in other.rounds) < sum(r.drafted for r in other.rounds)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["model", "skip"])
def test_what_is_drafted_past_an_end_is_neither_counted_nor_emitted(kind):
    """One token at a time stops there; a chain runs on, and only what comes before counts."""
    free = trial(kind, chained=False, sampling=GREEDY, eos=set())
    ended = 0
    for end in set(free.tokens[5:]):
        one, other = (trial(kind, chained=c, sampling=GREEDY, eos={end}) for c in (False, True))
        assert one.tokens == other.tokens and one.rounds == other.rounds
        ended += one.finish == "eos"
    assert ended > 3


@examples(60)
@given(data=st.data())
def test_judging_on_the_device_is_judging_here(data):
    k, vocabulary = data.draw(st.integers(1, 5)), 7
    seed = data.draw(st.integers(0, 10**6))
    torch.manual_seed(seed)
    logits, other = torch.randn(k + 1, vocabulary) * 2, torch.randn(k, vocabulary) * 2
    p, q = logits.softmax(-1), other.softmax(-1)
    greedy = data.draw(st.booleans())
    best = logits[:k].argmax(-1)
    drafts = (
        torch.where(torch.rand(k) < 0.7, best, torch.randint(vocabulary, (k,))) if greedy else q.multinomial(1)[:, 0]
    )
    if greedy:
        found, want = judged_greedy(logits, drafts), accept_greedy(logits, drafts.tolist())
    else:
        one_hot = data.draw(st.booleans())
        draws = [torch.Generator().manual_seed(seed) for _ in range(2)]
        found = judged_sampled(p, None if one_hot else q, drafts, draws[0])
        want = accept_sampled(p, None if one_hot else q, drafts.tolist(), draws[1])
    assert tuple(found[:2].tolist()) == want and found[2:].tolist() == drafts.tolist()


def test_a_rejection_that_leaves_nothing_over_draws_from_p():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.5, 0.5, 0.0]])
    found = judged_sampled(p, q * 4, torch.tensor([2]), torch.Generator().manual_seed(0))  # p(2) = 0: rejected
    assert found[0] == 0 and found[1] in (0, 1)


class Counted(Tensor):
    """A fake device: a tensor that counts how often somebody waits for its numbers."""

    waits = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.__float__):
            cls.waits += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.full
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("chained", [True, False])
def test_one_wait_a_round(monkeypatch, sampling, chained):
    for place in (rules, model):
        monkeypatch.setattr(place, "best", lambda logits: logits.argmax(-1).tolist())  # as on a GPU
    inner = CachedModel._forward
    monkeypatch.setattr(
        CachedModel, "_forward", lambda self, ids, keep: inner(self, ids.as_subclass(Tensor), keep).as_subclass(Counted)
    )
    Counted.waits = 0
    found = trial("model", chained=chained, sampling=sampling, eos=set())
    if chained:
        # The first token, and a last round that may draft nothing, are judged here: what is accepted, what follows.
        assert len(found.rounds) <= Counted.waits <= len(found.rounds) + 4
    else:
        assert Counted.waits > 4 * len(found.rounds)
