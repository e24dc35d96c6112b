"""Several sequences of different lengths side by side: one forward pass, and each row's cache grows and rolls back on
its own.

Rows are kept from the left, without gaps; a row that reads fewer tokens than the widest is padded, and what its padding
writes is overwritten by the next tokens. Attention is masked by position, so no row sees padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specbench.engines.cached import packed_head
from specbench.errors import EngineError


class _Places:
    """Where the tokens of a pass go, for all layers of a cache: `lengths[b]` tokens of row b are valid, `at` [batch, n]
    are the positions of the pass, and `end` is one past the last that any row of it may see."""

    def __init__(self, capacity: int, batch: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * batch
        self.rows = self.at = torch.empty(0)
        self.end = 0


class _RaggedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values [batch, heads, capacity, head_dim]. It knows the places and not the cache: with a reference back
    a cache would outlive its trial, until Python looks for cycles."""

    is_sliding = False

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, width = key_states.shape
        # Zeros and not whatever was there: a masked NaN is still a NaN.
        self.keys = key_states.new_zeros(batch, heads, self.places.capacity, width)
        self.values = value_states.new_zeros(batch, heads, self.places.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, at, end = self.places.rows, self.places.at, self.places.end
        self.keys[rows, :, at] = key_states.transpose(1, 2)
        self.values[rows, :, at] = value_states.transpose(1, 2)
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.places.end, 0

    def get_seq_length(self) -> int:
        return max(self.places.lengths, default=0)

    def get_max_length(self) -> int:
        return self.places.capacity


class RaggedCache(Cache):  # type: ignore[misc]
    """A cache whose rows have lengths of their own. `place` says where the next pass writes."""

    def __init__(self, layers: int, capacity: int, batch: int) -> None:
        self.places = _Places(capacity, batch)
        super().__init__(layers=[_RaggedLayer(self.places) for _ in range(layers)])

    def place(self, width: int, device: str) -> Tensor:
        """Positions [batch, width] of the next pass."""
        places = self.places
        places.rows = torch.arange(len(places.lengths), device=device)[:, None]
        places.at = torch.tensor(places.lengths, device=device)[:, None] + torch.arange(width, device=device)
        places.end = max(places.lengths) + width
        return places.at

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""
        self.places.lengths = [self.places.lengths[row] for row in rows]
        chosen = torch.tensor(rows)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[chosen.to(layer.keys.device)]
                layer.values = layer.values[chosen.to(layer.values.device)]


class RaggedModel:
    """A causal language model over a batch of sequences, each with room for `capacity` tokens, padding included. Raises
    EngineError for models with sliding-window layers, whose mask this does not build."""

    def __init__(self, model: Any, capacity: int) -> None:
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        if kinds:
            raise EngineError(
                f"Batches take full attention, the model has {', '.join(sorted(kinds))}", cure="Use --batch-size 1."
            )
        self.model = model
        self.capacity = capacity
        self.device = str(model.device)
        self.vocab_size = int(config.vocab_size)
        self._layers = int(config.num_hidden_layers)
        packed_head(model)

    def begin(self, batch: int) -> None:
        """Start anew with `batch` empty sequences."""
        self._cache = RaggedCache(self._layers, self.capacity, batch)

    def forward(self, rows: Sequence[Sequence[int]], *, every: bool) -> Tensor:
        """Read one row of tokens in each sequence; rows may differ in length, and an empty one reads nothing. Logits
        [batch, n, V] after each of the widest row's n tokens if `every`, else [batch, V] after each row's last."""
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.device)
        at = self._cache.place(width, self.device)
        last = torch.tensor([max(len(row), 1) - 1 for row in rows], device=self.device)
        wanted, where = torch.unique(last, return_inverse=True)
        out = self.model(
            input_ids=ids,
            attention_mask=self._visible(at),
            position_ids=at,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if every else wanted,
        )
        for row, tokens in enumerate(rows):
            self._cache.places.lengths[row] += len(tokens)
        logits: Tensor = out.logits if every else out.logits[torch.arange(len(rows), device=self.device), where]
        return logits

    def _visible(self, at: Tensor) -> Tensor:
        """Mask [batch, 1, n, end]: a token sees every position of its row up to its own."""
        return torch.arange(self._cache.places.end, device=self.device) <= at[:, None, :, None]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Keep only so many tokens of each sequence."""
        self._cache.places.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only."""
        self._cache.keep(rows)
