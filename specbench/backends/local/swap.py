"""Lean layers in the place of transformers' own, once each of them has given the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.lean import (
    SHELLS,
    TOLERANCE,
    LeanLayer,
    Packed,
    agree,
    of_transformers,
    packs,
    seen_from,
)

# Decoder layers known to be: norm, attention with rotary positions, norm, gated feed-forward, each added to the stream.
_KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}

# Tokens read in the three passes that are compared: a prompt, a step, a verify pass.
_PASSES = (8, 1, 3)


@torch.inference_mode()
def make_lean(model: Any) -> None:
    """Replace, in place, the layers of a loaded transformers model by lean ones, and pack its head, where the model is
    known and each layer gives what the one before it gave."""
    layers = getattr(getattr(model, model.base_model_prefix, None), "layers", None)
    if not of_transformers(model, SHELLS) or not isinstance(layers, nn.ModuleList) or not all(map(_fits, layers)):
        return
    passes = _passes(model)
    for index, layer in enumerate(layers):
        lean = LeanLayer(layer)
        old, new = (_through(one, passes, model.config) for one in (layer, lean))
        # Held against what the layer adds to the stream, which alone is its own.
        if not all(agree(one, other, one - given.x) for given, one, other in zip(passes, old, new, strict=True)):
            return
        layers[index] = lean
        passes = [replace(one, x=x) for one, x in zip(passes, old, strict=True)]
    head = model.lm_head
    if _is_plain(head) and packs(head.weight):
        model.lm_head = Packed(head.weight, head.bias, copies=head.weight is model.get_input_embeddings().weight)


def forward_of(model: Any) -> str:
    """What runs the layers of a model, for the record."""
    layers = getattr(getattr(model, model.base_model_prefix, None), "layers", None)
    lean = isinstance(layers, nn.ModuleList) and all(isinstance(layer, LeanLayer) for layer in layers)
    if not lean:
        return "transformers"
    return "lean, packed weights" if isinstance(model.lm_head, Packed) else "lean"


@dataclass(frozen=True, slots=True)
class _Pass:
    """Hidden states x [1, n, hidden] of a few tokens, their positions [1, n], and what a layer is told of them."""

    x: Tensor
    positions: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor | None


def _fits(layer: Any) -> bool:
    """Whether a decoder layer is of a kind that LeanLayer knows, over full attention."""
    if not of_transformers(layer, _KNOWN):
        return False
    attention, feed = layer.self_attn, layer.mlp
    joined = attention.q_proj, attention.k_proj, attention.v_proj
    if not all(map(_is_plain, (*joined, attention.o_proj, feed.gate_proj, feed.up_proj, feed.down_proj))):
        return False
    biases = {linear.bias is None for linear in joined}
    windows = (getattr(one, "sliding_window", None) for one in (attention, attention.config))
    sliding = getattr(attention.config, "use_sliding_window", True) and any(windows)
    return len(biases) == 1 and not sliding


def _is_plain(linear: Any) -> bool:
    """Whether it multiplies by its weight and no more: a quantized one is of another class, or its weight is."""
    weight = getattr(linear, "weight", None)
    return type(linear) is nn.Linear and type(weight) is nn.Parameter and weight.dtype in TOLERANCE


def _passes(model: Any) -> list[_Pass]:
    """The embeddings of a few tokens from all over the vocabulary, as the first layer gets them."""
    embedding, rotary = model.get_input_embeddings(), model.model.rotary_emb
    ids = torch.linspace(0, embedding.num_embeddings - 1, sum(_PASSES), device=model.device).long()[None]
    found, past = [], 0
    for n in _PASSES:
        x, at = embedding(ids[:, past : past + n]), torch.arange(past, past + n, device=model.device)[None]
        mask = seen_from(at, torch.arange(past + n, device=model.device)) if n > 1 and past else None
        found.append(_Pass(x, at, rotary(x, at), mask))
        past += n
    return found


def _through(layer: Any, passes: Sequence[_Pass], config: Any) -> list[Tensor]:
    cache = RewindableCache(config, sum(_PASSES))
    return [
        layer(
            one.x,
            attention_mask=one.mask,
            position_ids=one.positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=one.rotary,
        )
        for one in passes
    ]
