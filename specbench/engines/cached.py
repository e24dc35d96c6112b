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
        except torch.OutOfMemoryError as error:
            raise EngineError(
                "Out of device memory", where=f"{self.length + len(ids)} tokens", cure="Use shorter prompts or --limit."
            ) from error
        self.length += len(ids)
        logits: Tensor = out.logits[0]
        return logits

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens."""
        self._cache.rewind(length)
        self.length = length
