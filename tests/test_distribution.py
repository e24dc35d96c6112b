"""Sampled text follows the target exactly: chi-square over all texts, and the same test rejects planted wrong rules."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import full
from fake_markov import FakeMarkov, text_probabilities
from scipy import stats
from tiny import run

from specbench.acceptance import loop
from specbench.acceptance.loop import Proposal
from specbench.acceptance.rules import accept_sampled, best, distribution, draw, residual
from specbench.drafters.model import ModelDrafter
from specbench.records import Sampling

TARGET = FakeMarkov.random(3, seed=1)
DRAFT = FakeMarkov.random(3, seed=2)
PROMPT = [0, 1]
EOS = {2}
LENGTH = 4
WARM = Sampling(0.8, top_p=0.95)


class FakeGuess:
    """Proposes fixed tokens with certainty, as an n-gram table does."""

    def begin(self, prompt):
        pass

    def propose(self, x, k, generator):
        return Proposal([0, 1, 0][:k])


def chi_square(drafter, sampling, trials=4000, gamma=3):
    """p-value of the observed texts against the exact distribution; rare texts are pooled."""
    exact = text_probabilities(TARGET, PROMPT, LENGTH, sampling, EOS)
    seen = Counter(
        tuple(
            run(TARGET, drafter, PROMPT, gamma=gamma, sampling=sampling, eos=EOS, max_new_tokens=LENGTH, seed=s).tokens
        )
        for s in range(trials)
    )
    if not set(seen) <= {text for text, p in exact.items() if p > 0}:
        return 0.0  # a text that the target never writes
    common = [text for text, p in exact.items() if p * trials >= 10]
    rare = [text for text in exact if text not in common]
    observed = [seen[text] for text in common] + [sum(seen[text] for text in rare)]
    expected = [exact[text] * trials for text in common] + [sum(exact[text] for text in rare) * trials]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    return stats.chisquare(observed, expected, sum_check=False).pvalue


def drafter_for(sampling):
    return ModelDrafter(DRAFT, vocab_size=3, sampling=sampling, eos=EOS)


@pytest.mark.parametrize("sampling", [Sampling(1.0), *full(WARM, Sampling(1.3, top_k=2))], ids=str)
def test_text_with_a_draft_model_follows_the_target(sampling):
    assert chi_square(drafter_for(sampling), sampling) > 1e-3


@pytest.mark.full
def test_text_with_one_hot_drafts_follows_the_target():
    assert chi_square(FakeGuess(), WARM) > 1e-3


def wrong_no_residual(p, q, drafts, generator):
    accepted, _ = accept_sampled(p, q, drafts, generator)
    return accepted, draw(p[accepted], generator)


def wrong_p_and_q_swapped(p, q, drafts, generator):
    if not drafts:
        return accept_sampled(p, q, drafts, generator)
    x = torch.tensor(drafts)[:, None]
    u = torch.rand(len(drafts), generator=generator)
    accepted = int((u * p[: len(drafts)].gather(1, x)[:, 0] < q.gather(1, x)[:, 0]).cumprod(0).sum())
    if accepted == len(drafts):
        return accepted, draw(p[accepted], generator)
    return accepted, draw(residual(p[accepted], q[accepted], drafts[accepted]), generator)


def wrong_off_by_one_bonus(p, q, drafts, generator):
    accepted, token = accept_sampled(p, q, drafts, generator)
    return (accepted, draw(p[max(0, accepted - 1)], generator)) if accepted == len(drafts) else (accepted, token)


@pytest.mark.parametrize(
    "rule", [wrong_p_and_q_swapped, *full(wrong_no_residual, wrong_off_by_one_bonus)], ids=lambda r: r.__name__
)
def test_the_same_test_rejects_a_wrong_rule(rule, monkeypatch):
    monkeypatch.setattr(loop, "accept_sampled", rule)
    assert chi_square(drafter_for(WARM), WARM) < 1e-6


@pytest.mark.full
def test_a_wrong_draft_warper_is_only_slow_not_wrong():
    # q must be the distribution the drafts were drawn from; that it differs from p is what the rule is for
    cold_draft = ModelDrafter(DRAFT, vocab_size=3, sampling=Sampling(0.3), eos=EOS)
    assert chi_square(cold_draft, WARM) > 1e-3


def test_acceptance_of_one_token_is_the_overlap_of_p_and_q():
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    q = torch.tensor([[0.2, 0.7, 0.1]])
    trials = 6000
    accepted = sum(accept_sampled(p, q, [draw(q[0], generator)], generator)[0] for _ in range(trials))
    overlap = float(torch.minimum(p[0], q[0]).sum())  # 0.2 + 0.3 + 0.1
    assert overlap == pytest.approx(0.6)
    assert accepted / trials == pytest.approx(overlap, abs=4 * (overlap * (1 - overlap) / trials) ** 0.5)


def test_residual_is_what_p_has_beyond_q():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.7, 0.1])
    assert residual(p, q, 1).tolist() == pytest.approx([0.75, 0.0, 0.25])
    assert residual(p, None, 0).tolist() == pytest.approx([0.0, 0.6, 0.4])
    assert residual(p, p, 0).tolist() == pytest.approx(p.tolist())


def test_warping_follows_temperature_then_top_k_then_top_p():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    assert distribution(logits, Sampling(1.0, top_k=3))[0].tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    # top-p counts after top-k: 4/9 + 3/9 = 0.78 reaches 0.7 with two tokens
    assert distribution(logits, Sampling(1.0, top_k=3, top_p=0.7))[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    squared = torch.tensor([16, 9, 4, 1]) / 30
    assert distribution(logits, Sampling(0.5))[0].tolist() == pytest.approx(squared.tolist())
    assert distribution(logits, Sampling())[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_best_token_is_that_of_torch_also_where_logits_tie(dtype):
    torch.manual_seed(0)
    logits = (torch.randn(40, 300) * 2).round().to(dtype)  # many equal
    assert (logits == logits.amax(-1, keepdim=True)).sum(-1).max() > 1
    with torch.inference_mode():
        assert best(logits) == logits.argmax(-1).tolist()
        assert best(logits[3:4, ::2]) == logits[3:4, ::2].argmax(-1).tolist()
