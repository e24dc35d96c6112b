"""A transformers model with decoder layers that do the same in fewer, larger steps; for both arms alike.

In a pass over a few tokens most of transformers' time goes into small operations: seven matrix products where four do,
keys and values repeated for every query head, norms, masks and bookkeeping. Here q, k and v are one product and gate
and up another, and the query heads that share keys are rows of one attention. The arithmetic is the model's own; each
layer is held against the one it replaces when the model is loaded, and a model of another make, or one whose layers do
not agree, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbench.engines.cache import RewindableCache
from specbench.engines.packed import Packed, joined

# Models that are: token embedding, decoder layers of one kind, norm, head, and nothing else.
SHELLS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}

Update = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Frame:
    """What all layers of one pass share: cosines and sines [batch, n, 1, head_dim] (the sines of the first half
    negated, so that rotating a half needs no negation) and, unless the pass is causal by itself, a mask of what each
    query may see, repeated for the `groups` query heads that share keys [batch or 1, 1, groups * n, length]."""

    def __init__(self, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> None:
        cos, sin = rotary
        half = sin.shape[-1] // 2
        self.cos = cos[:, :, None]
        self.sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]
        self.mask = mask
        self._folded: dict[int, Tensor] = {}

    def folded(self, groups: int) -> Tensor | None:
        """The mask for that many query heads to a key head."""
        if self.mask is None or groups == 1:
            return self.mask
        if groups not in self._folded:
            self._folded[groups] = self.mask.repeat(1, 1, groups, 1)
        return self._folded[groups]


class LeanLayer(nn.Module):
    """One decoder layer, [batch, n, hidden] -> the same, made of a transformers `layer`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, feed = layer.self_attn, layer.mlp
        self.index = int(attention.layer_idx)
        self.head_dim = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.head_dim
        self.key_heads = attention.k_proj.out_features // self.head_dim
        self.groups = self.heads // self.key_heads
        self.scale = float(attention.scaling)
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = joined([attention.o_proj])
        self.gate_up = joined([feed.gate_proj, feed.up_proj])
        self.down = joined([feed.down_proj])
        self.act = feed.act_fn
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **unused: Any,
    ) -> Tensor:
        """As transformers calls a layer. The frame of a pass is kept where all its layers find it, in their cache."""
        seen, frame = getattr(past_key_values, "frame", (None, None))
        if frame is None or seen is not position_embeddings:
            frame = Frame(position_embeddings, attention_mask)
            past_key_values.frame = (position_embeddings, frame)
        return self.run(hidden_states, frame, partial(past_key_values.update, layer_idx=self.index))

    def run(self, x: Tensor, frame: Frame, update: Update) -> Tensor:
        """One pass over hidden states x [batch, n, hidden]; `update` takes its keys and values into the cache of this
        layer and returns all that are there."""
        batch, n, _ = x.shape
        rows = self.qkv(norm(self.before, x)).view(batch, n, -1, self.head_dim)
        q_and_k, v = rows[:, :, : -self.key_heads], rows[:, :, -self.key_heads :]
        if self.q_norm is not None:
            q, k = q_and_k[:, :, : self.heads], q_and_k[:, :, self.heads :]
            q_and_k = torch.cat((norm(self.q_norm, q), norm(self.k_norm, k)), 2)
        rotated = torch.addcmul(q_and_k * frame.cos, q_and_k.roll(self.head_dim // 2, -1), frame.sin)
        rotated = rotated.transpose(1, 2)
        keys, values = update(rotated[:, self.heads :], v.transpose(1, 2))
        added: Tensor = self.out(self._attend(rotated[:, : self.heads], keys, values, frame))
        x = x + added
        gate, up = self.gate_up(norm(self.between, x)).chunk(2, -1)
        added = self.down(self.act(gate) * up)
        return x + added

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> Tensor:
        """Queries [batch, heads, n, head_dim] over keys and values [batch, key_heads, length, head_dim]."""
        batch, _, n, _ = q.shape
        if n > 1 and frame.mask is None:
            seen = functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scale, enable_gqa=self.groups > 1
            )
        else:
            # Heads that share keys are rows of one query: nothing is repeated, and kernels that take a mask do.
            rows = q.reshape(batch, self.key_heads, self.groups * n, self.head_dim)
            mask = frame.folded(self.groups)
            seen = functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=self.scale)
            seen = seen.reshape(batch, self.heads, n, self.head_dim)
        return seen.transpose(1, 2).reshape(batch, n, -1)


class LeanDecoder:
    """A whole model of lean layers without transformers' shell around them: token ids in, logits out."""

    def __init__(self, model: Any) -> None:
        body = model.model
        self._embed, self._layers, self._norm = body.embed_tokens, list(body.layers), body.norm
        self._rotary, self._head = body.rotary_emb, model.lm_head

    def __call__(self, ids: Tensor, cache: RewindableCache, keep: int) -> Tensor:
        """Read `ids` [batch, n] after what the cache holds; logits [batch, keep, V] after the last `keep`."""
        n, past = ids.shape[1], cache.get_seq_length()
        at = torch.arange(past, past + n, device=ids.device)
        # A prompt is causal by itself, and one token sees all.
        mask = seen_from(at, torch.arange(past + n, device=ids.device)) if n > 1 and past else None
        return self.run(ids, at, mask, [layer.update for layer in cache.layers], keep)

    def run(self, ids: Tensor, at: Tensor, mask: Tensor | None, updates: Sequence[Update], keep: int) -> Tensor:
        """One pass over `ids` [batch, n] at positions `at` [n], with an update of the cache for each layer."""
        x = self._embed(ids)
        frame = Frame(self._rotary(x, at[None]), mask)
        for layer, update in zip(self._layers, updates, strict=True):
            x = layer.run(x, frame, update)
        kept = x[:, -keep:]
        if not isinstance(self._head, Packed):
            kept = kept.clone(memory_format=torch.contiguous_format)  # engines.cached says why
        logits: Tensor = self._head(norm(self._norm, kept))
        return logits


def seen_from(at: Tensor, places: Tensor) -> Tensor:
    """Mask [1, 1, n, length]: a token at `at` [n] sees every one of `places` [length] up to its own."""
    return (places <= at[:, None])[None, None]


def norm(module: Any, x: Tensor) -> Tensor:
    """Root-mean-square norm over the last dimension with the weight of a transformers module."""
    return functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def decoder_of(model: Any) -> LeanDecoder | None:
    """The model without its shell; None where it keeps one, or any layer is not lean."""
    if type(model).__name__ not in SHELLS or not all(isinstance(layer, LeanLayer) for layer in model.model.layers):
        return None
    return LeanDecoder(model)
