"""The second way to every count: transformers' own assisted generation, round by round."""

from __future__ import annotations

import pytest
import torch
from conftest import full
from tiny import GREEDY, model_drafter, near_copy, run, tiny_llama
from transformers import GenerationConfig
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from specbench.models import load_model
from specbench.records import Round

PROMPTS = [[3, 14, 15, 9, 26, 5], [7], [1, 1, 2, 3, 5, 8, 13, 21, 34, 55]]


def assisted(target, draft, prompt, gamma, max_new_tokens, monkeypatch):
    """Text and rounds of `generate(assistant_model=...)` at a fixed gamma. Counts come from the hook that transformers
    calls after each round; its settings live on the assistant, and its confidence cut-off must be switched off."""
    rounds = []
    draft.generation_config.num_assistant_tokens = gamma
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    update = AssistedCandidateGenerator.update_candidate_strategy

    def watch(self, input_ids, scores, num_matches):
        rounds.append(Round(scores.shape[1] - 1, int(num_matches)))
        return update(self, input_ids, scores, num_matches)

    monkeypatch.setattr(AssistedCandidateGenerator, "update_candidate_strategy", watch)
    ids = torch.tensor([prompt])
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=-1)
    with torch.inference_mode():
        out = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, assistant_model=draft)
    return out[0, len(prompt) :].tolist(), rounds


@pytest.mark.parametrize("gamma", [*full(1, 2), 4, *full(7)])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_rounds_are_those_of_transformers(gamma, prompt, monkeypatch):
    target = tiny_llama(64, seed=1)
    draft = near_copy(target, noise=0.1)
    drafter = model_drafter(draft, vocab_size=64, sampling=GREEDY, eos=set())
    ours = run(target, drafter, prompt, gamma=gamma, max_new_tokens=40)
    # transformers drafts straight after the prompt, we after the token that prefill yields: start it from there
    tokens, theirs = assisted(target, draft, [*prompt, ours.tokens[0]], gamma, 39, monkeypatch)
    assert ours.tokens[1:] == tokens
    assert ours.rounds == theirs
    assert sum(r.accepted for r in ours.rounds) > 5


@pytest.fixture(scope="module")
def embedded_pair():
    """The real pair in float32, as users load it."""
    return [load_model(name, dtype="float32", device="cpu") for name in ("demo:target", "demo:draft")]


QUESTIONS = [
    "Write a Python function that returns the n-th Fibonacci number.",
    "Summarise in one sentence: the ferry was late because fog closed the harbour until noon.",
]


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS, ids=["code", "summarise"])
def test_greedy_text_of_the_embedded_pair_is_the_targets_at_any_gamma(question, embedded_pair):
    target, draft = embedded_pair
    turns = [{"role": "user", "content": question}]
    prompt = target.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    eos = {target.tokenizer.eos_token_id}
    vocab = target.model.config.vocab_size
    drafter = model_drafter(draft.model, vocab_size=vocab, sampling=GREEDY, eos=eos)
    alone = run(target.model, None, prompt, eos=eos, max_new_tokens=16)
    ids = torch.tensor([prompt])
    config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=sorted(eos), pad_token_id=0)
    theirs = target.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    assert alone.tokens == theirs[0, len(prompt) :].tolist()
    for gamma in (1, 2, 4, 8):
        got = run(target.model, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=16)
        assert got.tokens == alone.tokens
        assert 0 < sum(r.accepted for r in got.rounds) < sum(r.drafted for r in got.rounds)
