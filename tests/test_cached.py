"""The rewindable model: the same logits as without a cache, whatever was read and forgotten before."""

from __future__ import annotations

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, model_drafter, near_copy, run, tiny_llama
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

from specbench.backends.local.cached import CachedModel
from specbench.errors import EngineError

MODEL = tiny_llama(64, seed=1)


@examples(40)
@given(data=st.data())
def test_logits_after_any_reading_and_rewinding_are_those_of_the_whole_text(data):
    cached = CachedModel(MODEL, 64)
    text: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        keep_n = data.draw(st.integers(0, len(text)))
        cached.rewind(keep_n)
        new = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=8))
        text = text[:keep_n] + new
        with torch.inference_mode():
            got = cached.forward(new, keep=len(new))
            whole = MODEL(torch.tensor([text])).logits[0, -len(new) :]
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)
        assert cached.length == len(text)


@pytest.mark.full
def test_a_sliding_window_is_rewound_past_what_it_would_have_dropped():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"] * 2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    target = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    drafter = model_drafter(near_copy(target, noise=0.6), vocab_size=64, sampling=GREEDY, eos=set())
    prompt = list(range(1, 15))
    live = run(target, drafter, prompt, gamma=5, max_new_tokens=30)
    ids = torch.tensor([prompt])
    settings_ = GenerationConfig(max_new_tokens=30, do_sample=False, pad_token_id=-1)
    theirs = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings_)
    assert live.tokens == theirs[0, 14:].tolist()
    assert 0 < sum(r.accepted for r in live.rounds) < sum(r.drafted for r in live.rounds)


def test_out_of_memory_is_an_error_with_a_hint(monkeypatch):
    cached = CachedModel(MODEL, 8)

    def full(**kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(cached, "model", full)
    with pytest.raises(EngineError, match=r"Out of memory \(3 tokens\)\. Use shorter prompts"):
        cached.forward([1, 2, 3], keep=1)


def test_other_errors_of_a_model_are_not_called_memory(monkeypatch):
    cached = CachedModel(MODEL, 8)

    def broken(**kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(cached, "model", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cached.forward([1], keep=1)
