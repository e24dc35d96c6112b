"""An EAGLE-3 or P-EAGLE head: a few decoder layers that read the target's hidden states and draft its next tokens.

The pair of place i is the token at i + 1 and the target's states of the token at i; of it the head drafts token i + 2.
Drafting on, its own output takes the place of the states. In P-EAGLE (parallel drafting) a mask token and a learned
state take the place of token and states, and one pass drafts all tokens of a round. The layers are transformers' own,
whose first reads twice the width; they run as lean layers, which are held against transformers' attention and
feed-forward when a head is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.headreader import (
    COPY_AGAIN,
    Network,
    filled,
    kind_of_layer,
    misfit,
    over_all,
    reads_of,
    require_same,
    tensors_of,
    vocabulary_of,
)
from specbench.backends.local.lean import Frame, LeanLayer, Norm, Packed, joined
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.headconfig import EagleHead
from specbench.models.heads import require_fit

_UNUSED = ("verifier_norm.", "verifier_lm_head.", "rotary_emb.")


class _Parts(nn.Module):
    """The weights of a head under the names of its file, in transformers' modules."""

    def __init__(self, head: EagleHead, states: int) -> None:
        super().__init__()
        kind = kind_of_layer(head.layer)
        self.fc = nn.Linear(states * head.target_hidden, head.hidden, bias=False)
        self.layers = nn.ModuleList(kind.layer(head.layer, index) for index in range(head.layer.num_hidden_layers))
        first: Any = self.layers[0]
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(first.self_attn, name)
            setattr(first.self_attn, name, nn.Linear(2 * head.hidden, old.out_features, bias=old.bias is not None))

        def norm(width: int) -> nn.Module:
            made: nn.Module = kind.norm(width, eps=head.layer.rms_norm_eps)
            return made

        first.hidden_norm = norm(head.hidden)
        self.norm = norm(head.hidden)
        self.lm_head = nn.Linear(head.hidden, head.draft_vocab, bias=False)
        if head.mask_token is not None:
            self.mask_hidden = nn.Parameter(torch.empty(states * head.target_hidden))
        if head.norm_before_fc:
            self.input_norm = norm(states * head.target_hidden)
        if head.fc_norm:
            self.fc_norm = nn.ModuleList(norm(head.target_hidden) for _ in range(states))


class Eagle3(Network):
    """A loaded head. `ids` [draft vocabulary] are the target's ids of what it drafts, None where these are all."""

    def __init__(
        self, head: EagleHead, parts: _Parts, target: LoadedModel, embed: Any, own: bool, ids: Tensor | None
    ) -> None:
        weights = [*parts.parameters(), *([embed.weight] if own else [])]
        small = joined([parts.lm_head])
        forward = "lean, packed weights" if isinstance(small, Packed) else "lean"
        super().__init__(head, head.layer, target, reads_of(head, target), weights, forward)
        self.options, self.parts, self.embed, self.ids = head, parts, embed, ids
        first: Any = parts.layers[0]
        self.rotary = kind_of_layer(head.layer).rotary(head.layer).to(self.device)
        self.layers = [LeanLayer(layer) for layer in parts.layers]
        self._hidden_norm, self._norm = Norm(first.hidden_norm), Norm(parts.norm)
        # Of a module mypy knows only that a call gives anything.
        self._fc: Callable[[Tensor], Tensor] = joined([parts.fc]).forward
        self._lm_head: Callable[[Tensor], Tensor] = small.forward
        self._input_norm = Norm(parts.input_norm) if head.norm_before_fc else None
        self._fc_norm = [Norm(one) for one in parts.fc_norm] if head.fc_norm else []
        if head.mask_token is not None:  # the learned state, fused as states are
            self.masked, self.mask_token = self.fused(parts.mask_hidden[None])[0], head.mask_token

    def fused(self, states: Tensor) -> Tensor:
        if self._input_norm is not None:
            states = self._input_norm(states)
        if self._fc_norm:
            chunks = states.chunk(len(self._fc_norm), -1)
            states = torch.cat([norm(chunk) for norm, chunk in zip(self._fc_norm, chunks, strict=True)], -1)
        return self._fc(states)

    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        embedded = self.embed(ids).to(given.dtype)
        frame = Frame(self.rotary(embedded, at), mask)
        (first, *rest), updates = self.layers, [layer.put for layer in cache.layers]
        normed = self._hidden_norm(given)
        read = torch.cat((first.before(embedded), normed), -1)
        x = first.run(normed if self.options.norm_before_residual else given, frame, updates[0], read)
        for layer, update in zip(rest, updates[1:], strict=True):
            x = layer.run(x, frame, update)
        return self._norm.forward(x) if self.options.norm_output else x

    def logits(self, own: Tensor) -> Tensor:
        small = self._lm_head(own if self.options.norm_output else self._norm.forward(own))
        return over_all(small, self.ids, self.vocab_size)


def load_eagle(head: EagleHead, target: LoadedModel) -> Eagle3:
    """Load a head beside its target, in the target's precision. Raises ModelError where it does not fit the target,
    where its weights are not those of its configuration, or where its vocabulary map leads elsewhere."""
    require_fit(head, target.name, target.model.config)
    reads, weight = reads_of(head, target), target.model.get_input_embeddings().weight
    tensors = tensors_of(head, _UNUSED, {"midlayer.": "layers.0."})
    ids = vocabulary_of(head, tensors.pop("d2t", None), tensors.pop("t2d", None))
    own = tensors.pop("embed_tokens.weight", None)
    if "mask_hidden" in tensors:  # [1, 1, width] or [1, width], by trainer
        tensors["mask_hidden"] = tensors["mask_hidden"].flatten()
    with torch.device("meta"):
        parts = _Parts(head, len(reads))
    filled(head, parts, tensors, weight)
    embed = target.model.get_input_embeddings()
    if own is not None:
        if own.shape != (head.vocab_size, head.hidden):
            raise misfit(head, "embed_tokens.weight", own.shape, (head.vocab_size, head.hidden))
        embed = nn.Embedding(*own.shape, _weight=own.to(weight))
    elif head.hidden != head.target_hidden:
        raise ModelError(
            f"{head.name} has no embedding of its own, and the target's is {head.target_hidden} wide, not "
            f"{head.hidden}",
            hint=COPY_AGAIN,
        )
    loaded = Eagle3(head, parts, target, embed, own is not None, None if ids is None else ids.to(weight.device))
    _require_lean(loaded)
    return loaded


@torch.inference_mode()
def _require_lean(loaded: Eagle3) -> None:
    head, parts, n = loaded.options, loaded.parts, 8
    ids = torch.linspace(0, head.vocab_size - 1, n + 1, device=loaded.device).long()
    given, embedded = (loaded.embed(part).to(loaded.dtype)[None] for part in (ids[:-1], ids[1:]))
    at = torch.arange(n, device=loaded.device)[None]
    cache = RewindableCache(loaded.config, n)
    lean = loaded.run(ids[1:][None], given, at, None, cache)
    first: Any = parts.layers[0]
    normed, rotary = first.hidden_norm(given), loaded.rotary(embedded, at)
    x = normed if head.norm_before_residual else given
    read = torch.cat((first.input_layernorm(embedded), normed), -1)
    x = x + first.self_attn(read, position_embeddings=rotary, attention_mask=None)[0]
    x = x + first.mlp(first.post_attention_layernorm(x))
    for layer in list(parts.layers)[1:]:
        x = layer(x, position_embeddings=rotary, attention_mask=None)
    require_same(head, lean, parts.norm(x) if head.norm_output else x)
