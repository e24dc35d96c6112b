"""A DFlash head: one pass over the last token and a row of masks drafts as many tokens (arXiv 2602.06036).

The block sees itself, both ways, and the target's states of all tokens before it, which its layers take keys and values
from and nothing else: these are kept, those of a block are not. Its embedding and, unless it drafts a vocabulary of its
own, its last matrix are the target's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specbench.acceptance.rules import queued
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.headreader import (
    Branch,
    HeadReader,
    Network,
    filled,
    kind_of_layer,
    out_of_memory,
    over_all,
    reads_of,
    require_same,
    tensors_of,
    vocabulary_of,
)
from specbench.backends.local.lean import Frame, LeanLayer, Norm, Packed, joined
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.headconfig import BlockHead
from specbench.models.heads import require_fit

_UNUSED = ("verifier_norm.", "verifier_lm_head.", "rotary_emb.", "embed_tokens.", "mask_embedding.")

# What transformers calls them.
_RENAMED = {"encoder.fc.": "fc.", "encoder.output_norm_enc.": "hidden_norm."}


class _Parts(nn.Module):
    """The weights of a head under the names of its file, in transformers' modules."""

    def __init__(self, head: BlockHead, states: int) -> None:
        super().__init__()
        kind, eps = kind_of_layer(head.layer), head.layer.rms_norm_eps
        self.fc = nn.Linear(states * head.target_hidden, head.hidden, bias=False)
        self.hidden_norm, self.norm = kind.norm(head.hidden, eps=eps), kind.norm(head.hidden, eps=eps)
        self.layers = nn.ModuleList(kind.layer(head.layer, index) for index in range(head.layer.num_hidden_layers))


class DFlash(Network):
    """A loaded head. `ids` [draft vocabulary] are the target's ids of what it drafts, None where these are all;
    `lm_head` is its own or the target's."""

    def __init__(
        self, head: BlockHead, parts: _Parts, target: LoadedModel, lm_head: Any, own: bool, ids: Tensor | None
    ) -> None:
        weights = [*parts.parameters(), *([lm_head.weight] if own else [])]
        fc = joined([parts.fc])
        forward = "lean, packed weights" if isinstance(fc, Packed) else "lean"
        super().__init__(head, head.layer, target, reads_of(head, target), weights, forward)
        self.block_size, self.mask_token, self.ids, self.parts = head.block_size, head.mask_token, ids, parts
        self.options, self.windows = head, head.windows
        self.embed, self._lm_head = target.model.get_input_embeddings(), lm_head
        self.shared_head = None if own else lm_head
        self.rotary = kind_of_layer(head.layer).rotary(head.layer).to(self.device)
        self.layers = [LeanLayer(layer) for layer in parts.layers]
        self._fc, self._hidden_norm, self._norm = fc, Norm(parts.hidden_norm), Norm(parts.norm)

    at_once = True

    def fused(self, states: Tensor) -> Tensor:
        return self._hidden_norm.forward(self._fc.forward(states))

    def keep(self, context: Tensor, at: Tensor, cache: Any) -> None:
        """Take fused states [batch, n, hidden] at positions `at` [1, n] into the cache."""
        frame = Frame(self.rotary(context, at), None)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            layer.keep(context, frame, kept.put)

    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """One pass over the tokens `ids` [batch, n] of blocks, after fused states that are `given` [batch, m, hidden]
        and not yet kept. `at` [1, m + n] are the positions of both, `mask` [1, 1, n, length] what a token may see. What
        `logits` are made from [batch, n, hidden]."""
        x = self.embed(ids).to(given.dtype)
        rotary = self.rotary(x, at)
        frames = {window: Frame(rotary, self.seen(mask, at, window)) for window in set(self.windows)}
        for window, layer, kept in zip(self.windows, self.layers, cache.layers, strict=True):
            x = layer.run(x, frames[window], kept.put, torch.cat((given, layer.before(x)), 1))
        return self._norm.forward(x)

    def seen(self, mask: Tensor | None, at: Tensor, window: int | None) -> Tensor | None:
        """What of `mask` a layer with this window sees; of `run`."""
        if mask is None or window is None:
            return mask
        n, length = mask.shape[2:]
        places = torch.cat((torch.arange(length - at.shape[1], device=at.device), at[0]))
        own = places[length - n :, None]
        if not self.options.anchored:
            return mask & ((own - places).abs() <= window)
        block = torch.arange(length, device=at.device) >= length - n
        anchor = own.view(-1, self.block_size, 1)[:, :1].expand(-1, self.block_size, 1).reshape(n, 1)
        before = torch.ones_like(block) if self.options.two_way else places <= own
        return mask & torch.where(block, before, places >= anchor - window)

    def logits(self, own: Tensor) -> Tensor:
        # A copy, since torch copies the whole weight for rows cut out of others.
        small = self._lm_head(own.clone(memory_format=torch.contiguous_format))
        return over_all(small, self.ids, self.vocab_size)


class BlockReader(HeadReader):
    """Of a head that drafts in blocks: memory is of the target's states, `own` what drafts are made from
    [n, k, hidden]."""

    head: DFlash

    def __init__(self, head: DFlash, capacity: int) -> None:
        super().__init__(head, capacity, head.block_size)
        self._spots = torch.arange(capacity + head.block_size, device=head.device)[None]

    def read(self, ids: Sequence[int], states: Tensor, keep: int = 1) -> Tensor:
        past, n = self.pairs, len(ids)
        with out_of_memory(self, f"{past + n} tokens"):
            self.head.keep(self.head.fused(states)[None], self._spots[:, past : past + n], self.cache)
            if not keep:
                return torch.empty(0, self.vocab_size)
            self.own = self._blocks(list(ids)[n - keep :], past + n - keep)
            return self.head.logits(self.own[:, 0])

    def block(self, ids: Sequence[int], states: Tensor, k: int) -> Tensor:
        """Keep states as `read` does and draft after the last of `ids`, in one pass; logits [k, V]."""
        past, n, size = self.pairs, len(ids), self.head.block_size
        end = past + n + size
        with out_of_memory(self, f"{end} tokens"):
            block = queued([[ids[-1], *[self.head.mask_token] * (size - 1)]], self.head.device)
            seen = torch.ones(1, 1, size, end, dtype=torch.bool, device=self.head.device)
            context = self.head.fused(states)[None]
            own = self.head.run(block, context, self._spots[:, past:end], seen, self.cache)
            self.cache.rewind(past + n)
            return self.head.logits(own[0, 1 : k + 1])

    def deeper(self, first: int, own: Tensor, drafts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for depth, _ in zip(range(1, own.shape[1]), drafts, strict=False):
            yield self.head.logits(own[:, depth])

    def _blocks(self, ids: Sequence[int], first: int) -> Tensor:
        """A block [n, k, hidden] after each of `ids`, by itself: row i sees the states up to place first + i, which is
        the one before its token."""
        n, size, end = len(ids), self.head.block_size, self.cache.get_seq_length()
        masks = [self.head.mask_token] * (size - 1)
        tokens = queued([token for one in ids for token in (one, *masks)], self.head.device)
        root = self._spots[0, first : first + n].repeat_interleave(size)
        at = root + 1 + self._spots[0, :size].repeat(n)
        seen = torch.cat((self._spots[:, :end] <= root[:, None], root[:, None] == root), 1)
        given = self.own.new_empty(1, 0, self.head.config.hidden_size, dtype=self.head.dtype, device=self.head.device)
        own = self.head.run(tokens[None], given, at[None], seen[None, None], Branch(self.cache, end))
        return own.view(n, size, -1)[:, 1:]


def load_dflash(head: BlockHead, target: LoadedModel) -> DFlash:
    """Load a head beside its target, in the target's precision. Raises ModelError as `load_eagle` does."""
    require_fit(head, target.name, target.model.config)
    reads, embed = reads_of(head, target), target.model.get_input_embeddings().weight
    tensors = tensors_of(head, _UNUSED, _RENAMED)
    maps = tensors.pop("d2t", None), tensors.pop("t2d", None)
    ids = None if head.draft_vocab == head.vocab_size else vocabulary_of(head, *maps)
    small = tensors.pop("lm_head.weight", None) if ids is not None else None
    tensors.pop("lm_head.weight", None)  # else the target's
    with torch.device("meta"):
        parts = _Parts(head, len(reads))
    filled(head, parts, tensors, embed)
    if ids is not None and (small is None or small.shape != (head.draft_vocab, head.hidden)):
        raise ModelError(f"{head.name} has no lm_head for its {head.draft_vocab:,} tokens", hint="Copy it again.")
    lm_head = target.model.get_output_embeddings()
    if small is not None:
        lm_head = nn.Linear(head.hidden, len(small), bias=False)
        lm_head.weight = nn.Parameter(small.to(embed), requires_grad=False)
    loaded = DFlash(head, parts, target, lm_head, small is not None, None if ids is None else ids.to(embed.device))
    _require_lean(loaded)
    return loaded


@torch.inference_mode()
def _require_lean(loaded: DFlash) -> None:
    n, parts = 8, loaded.parts
    ids = torch.linspace(0, loaded.vocab_size - 1, 2 * n, device=loaded.device).long()
    context, x = (loaded.embed(part).to(loaded.dtype)[None] for part in (ids[:n], ids[n:]))
    at, seen = torch.arange(2 * n, device=loaded.device)[None], torch.ones(1, 1, n, 2 * n, device=loaded.device) > 0
    # Windows are in the masks alone, and these are the same for both.
    loaded.windows = (None,) * len(loaded.layers)
    lean = loaded.run(ids[n:][None], context, at, seen, RewindableCache(loaded.config, 2 * n))
    loaded.windows = loaded.options.windows
    rotary = loaded.rotary(x, at)
    for layer in parts.layers:
        made: Any = layer
        # A layer of transformers reads both; what stands before the block is put in its place again.
        both = torch.cat((context, made.input_layernorm(x)), 1)
        mask = torch.ones(1, 1, 2 * n, 2 * n, device=loaded.device) > 0
        x = x + made.self_attn(both, position_embeddings=rotary, attention_mask=mask)[0][:, n:]
        x = x + made.mlp(made.post_attention_layernorm(x))
    require_same(loaded.head, lean, parts.norm(x))
