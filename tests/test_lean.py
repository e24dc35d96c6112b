"""Lean layers give what transformers' own give, over any cache; and what is not known, or does not agree, stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, near_copy, run, tiny_llama
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specbench.backends.local import lean
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.lean import LeanLayer, Packed, decoder_of, forward_of, make_lean, packs
from specbench.backends.local.ragged import RaggedModel
from specbench.drafters.model import ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.models.memory import step_bytes, weight_bytes

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "bos_token_id": None,
}
# Scaled rotary positions, biases, head norms, tied heads, one head to a key: what the families differ in.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama tied, biases": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True}),
    "llama, no shared keys": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4, "head_dim": 16}),
    "llama 3 rotary": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
}


def family(name: str, **overrides: Any) -> Any:
    """Random weights, norms and biases included: with norms of one and biases of zero much could be forgotten."""
    make, config, more = FAMILIES[name]
    torch.manual_seed(0)
    model = make(config(**(SHAPE | more | overrides))).eval().requires_grad_(False)
    for key, weight in model.named_parameters():
        if "norm" in key or key.endswith("bias"):
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


def leaned(model: Any) -> Any:
    twin = copy.deepcopy(model)
    make_lean(twin)
    return twin


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_logits_of_transformers(name):
    model = family(name)
    twin = leaned(model)
    assert forward_of(twin).startswith("lean") and forward_of(model) == "transformers"
    cached = CachedModel(twin, 64)
    text = [(7 * i) % 96 for i in range(20)]
    with torch.inference_mode():
        whole = model(torch.tensor([text])).logits[0]
        got = torch.cat([cached.forward(text[a:b], keep=b - a) for a, b in ((0, 9), (9, 10), (10, 15), (15, 20))])
        shell = twin(torch.tensor([text])).logits[0]
    torch.testing.assert_close(got, whole, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(shell, whole, atol=2e-4, rtol=1e-3)


@examples(40)
@given(data=st.data())
def test_after_any_reading_and_rewinding(data):
    model = family("qwen3")
    cached = CachedModel(leaned(model), 64)
    assert cached._lean is not None
    text: list[int] = []
    for _ in range(data.draw(st.integers(1, 5))):
        keep_n = data.draw(st.integers(0, len(text)))
        cached.rewind(keep_n)
        new = data.draw(st.lists(st.integers(0, 95), min_size=1, max_size=8))
        text = text[:keep_n] + new
        with torch.inference_mode():
            got = cached.forward(new, keep=len(new))
            whole = model(torch.tensor([text])).logits[0, -len(new) :]
        torch.testing.assert_close(got, whole, atol=5e-4, rtol=1e-3)


def test_sequences_of_different_lengths_side_by_side():
    model = family("llama")
    one, many = CachedModel(model, 64), RaggedModel(leaned(model), 64, 3)
    rows = [[1, 2, 3, 4, 5], [6, 7]]
    more = [[8], [9, 10, 11]]
    with torch.inference_mode():
        many.begin(2)
        many.forward(rows, every=False)
        got = many.forward(more, every=True)
        for row in (0, 1):
            one.rewind(0)
            one.forward(rows[row], keep=1)
            want = one.forward(more[row], keep=len(more[row]))
            torch.testing.assert_close(got[row, : len(more[row])], want, atol=2e-4, rtol=1e-3)


def test_rows_of_equal_length_as_a_probe_reads_them():
    model = family("llama")
    one, two = CachedModel(model, 32, batch=2), CachedModel(leaned(model), 32, batch=2)
    with torch.inference_mode():
        for rows in ([[1, 2, 3], [4, 5, 6]], [[7], [8]], [[9, 10], [11, 12]]):
            got, want = two.forward_rows(rows, 1), one.forward_rows(rows, 1)
            torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["model", "skip"])
def test_a_whole_trial_with_a_draft(kind):
    """The rounds, not only the text: a draft that reads wrongly gives the same text, in more rounds."""
    model = tiny_llama(64, seed=1, num_hidden_layers=4)
    draft = near_copy(model, noise=0.3)
    found = []
    for target, other in ((model, draft), (leaned(model), leaned(draft))):
        reader = CachedModel(target, 512)
        rule: dict[str, Any] = {"vocab_size": 64, "sampling": GREEDY, "eos": set()}
        skip = SkipDrafter(reader.sharing(first_layers(target, 3)), **rule)
        drafter = skip if kind == "skip" else ModelDrafter(CachedModel(other, 512), **rule)
        found.append(run(reader, drafter, [1, 2, 3, 4, 5], gamma=3, max_new_tokens=40))
    assert found[0].tokens == found[1].tokens and found[0].rounds == found[1].rounds
    assert 0 < sum(r.accepted for r in found[0].rounds) < sum(r.drafted for r in found[0].rounds)


needs_packing = pytest.mark.skipif(not packs(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="no bfloat16 kernels")


@needs_packing
@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_no_further_from_float32_than_transformers(name):
    """Packed weights, and rounding in other places: as near the truth as transformers is, though not the same."""
    exact = family(name)
    plain = copy.deepcopy(exact).to(torch.bfloat16)
    rounded = copy.deepcopy(plain).float()  # the weights as bfloat16 has them, the arithmetic of float32
    twin = leaned(plain)
    assert forward_of(twin) == "lean, packed weights" and isinstance(twin.model.layers[0].qkv, Packed)
    text = torch.tensor([[(5 * i + 1) % 96 for i in range(60)]])
    with torch.inference_mode():
        truth = rounded(text).logits[0]
        far = {
            who: (model(text).logits[0].float() - truth).norm() for who, model in (("ours", twin), ("theirs", plain))
        }
    assert 0 < far["ours"] < 1.5 * far["theirs"]
    assert far["ours"] < 0.05 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_packing)])
def test_weights_are_counted_once_however_they_lie(dtype):
    for name in ("llama", "llama tied, biases"):
        plain = family(name).to(dtype)
        twin = leaned(plain)
        assert weight_bytes(twin) == weight_bytes(plain)
        assert step_bytes(twin) == step_bytes(plain)
    assert twin.lm_head.weight is not twin.get_input_embeddings().weight


def scaled(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 1.5


def turned(model: Any) -> None:
    model.model.layers[1].self_attn.forward = partial_rotation(model.model.layers[1].self_attn)


def partial_rotation(attention: Any) -> Callable[..., Any]:
    """A layer that turns by no position, as some layers of some models do."""
    inner = attention.forward

    def forward(hidden_states: Any, position_embeddings: Any, **more: Any) -> Any:
        cos, sin = position_embeddings
        return inner(hidden_states, position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)), **more)

    return forward


def doubled(model: Any) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = inner.weight, inner.variance_epsilon

        def forward(self, x: Any) -> Any:
            return 2 * nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)

    model.model.layers[1].input_layernorm = Doubled(model.model.layers[1].input_layernorm)


@pytest.mark.parametrize("change", [turned, doubled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_does_something_else_stays(change, dtype):
    """Nothing in its names or shapes tells; only what it computes."""
    model = family("llama").to(dtype)
    change(model)
    text = torch.tensor([[3, 1, 4, 1, 5, 9]])
    before = model(text).logits
    make_lean(model)
    assert not isinstance(model.model.layers[1], LeanLayer)
    assert forward_of(model) == "transformers" and decoder_of(model) is None
    after = model(text).logits
    assert (after - before).norm() < 0.06 * before.norm()


def test_another_scale_of_attention_is_taken_over():
    model = family("llama")
    scaled(model)
    twin = leaned(model)
    text = torch.tensor([[3, 1, 4, 1, 5, 9]])
    assert forward_of(twin).startswith("lean")
    torch.testing.assert_close(twin(text).logits, model(text).logits, atol=2e-4, rtol=1e-3)


def test_unknown_and_sliding_models_stay_as_they_are():
    gemma = Gemma2ForCausalLM(Gemma2Config(**SHAPE | {"head_dim": 8})).eval()
    windowed = family("mistral", sliding_window=8)
    for model in (gemma, windowed):
        make_lean(model)
        assert forward_of(model) == "transformers"
        assert not any(isinstance(module, LeanLayer | Packed) for module in model.modules())


@pytest.mark.parametrize("name", ["o_proj", "down_proj"])
def test_what_multiplies_otherwise_stays(name):
    """As quantized models do."""

    class Quantized(nn.Linear):
        def forward(self, x: Any) -> Any:
            return nn.functional.linear(x, self.weight.to(x.dtype) / 64, self.bias)

    model = family("llama")
    for layer in model.model.layers:
        part = layer.self_attn if name == "o_proj" else layer.mlp
        old, new = getattr(part, name), Quantized(1, 1, bias=False)
        new.in_features, new.out_features = old.in_features, old.out_features
        new.weight = nn.Parameter((old.weight * 64).round().to(torch.int8), requires_grad=False)
        setattr(part, name, new)
    make_lean(model)
    assert forward_of(model) == "transformers"
    assert CachedModel(model, 8).forward([1, 2, 3], keep=1).isfinite().all()


def test_a_class_of_the_same_name_from_elsewhere_stays():
    """A model's own code may call itself anything; its shell is not compared, so only transformers' are known."""
    theirs = type("LlamaForCausalLM", (LlamaForCausalLM,), {"__module__": "somebody.modeling"})
    torch.manual_seed(0)
    model = theirs(LlamaConfig(**SHAPE)).eval().requires_grad_(False)
    make_lean(model)
    assert forward_of(model) == "transformers" and decoder_of(model) is None


def test_frames_are_made_once_a_pass(monkeypatch):
    """Not once a layer: cosines, sines and masks are the same for all."""
    made: list[int] = []
    monkeypatch.setattr(lean.Frame, "__init__", counted(lean.Frame.__init__, made))
    twin = leaned(family("llama"))
    made.clear()
    cache = RewindableCache(twin.config, 16)
    with torch.inference_mode():
        twin(torch.tensor([[1, 2, 3]]), past_key_values=cache)
        twin(torch.tensor([[4]]), past_key_values=cache)
    assert len(made) == 2


def counted(inner: Callable[..., None], made: list[int]) -> Callable[..., None]:
    def init(self: Any, *args: Any) -> None:
        made.append(1)
        inner(self, *args)

    return init
