"""A transformers model in process, one sequence at a time, behind the loop's `Target`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specbench.engines.cache import RewindableCache
from specbench.errors import EngineError


class CachedModel:
    """A causal language model and its KV cache with room for `capacity` tokens.

    Raises EngineError for models whose memory is not a KV cache (state-space and linear-attention layers cannot be
    rewound) and on out-of-memory.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if kinds:
            raise EngineError(
                f"The model has layers that cannot be rolled back: {', '.join(sorted(kinds))}",
                cure="Choose a model whose layers are all attention.",
            )
        self.model = model
        self.device = str(model.device)
        self.vocab_size = int(config.vocab_size)
        self._cache = RewindableCache(int(config.num_hidden_layers), capacity)
        self.length = 0
        head = model.get_output_embeddings()
        if head is not None and not head._forward_pre_hooks:
            head.register_forward_pre_hook(_packed)

    def forward(self, ids: Sequence[int], keep: int) -> Tensor:
        """Read `ids`, return logits [keep, V] after the last `keep` of them."""
        if max(ids) >= self.vocab_size:
            raise EngineError(
                f"The text holds token id {max(ids)}, the model knows only {self.vocab_size}",
                cure="Choose a draft with the target's vocabulary.",
            )
        try:
            out = self.model(
                input_ids=torch.tensor([ids], device=self.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        except RuntimeError as error:  # a GPU's OutOfMemoryError is one; a CPU has no class of its own for it
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            raise EngineError(
                "Out of memory", where=f"{self.length + len(ids)} tokens", cure="Use shorter prompts or --limit."
            ) from error
        self.length += len(ids)
        logits: Tensor = out.logits[0]
        return logits

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens."""
        self._cache.rewind(length)
        self.length = length


def _packed(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states whose first rows were cut off keep the strides of the whole; torch then copies the entire weight
    of the head at each call (70 ms instead of 8 for the embedded draft's two-token step). A copy of them does not:
    `contiguous()` would return the view, since a dimension of size 1 may have any stride."""
    hidden, *rest = inputs
    return (hidden.clone(memory_format=torch.contiguous_format), *rest)
