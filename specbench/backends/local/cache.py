"""A KV cache that can be rewound: room for the whole sequence is taken once, rollback is a change of length.

transformers' DynamicCache copies every layer's keys and values at each step to append one token; writing into
room already taken avoids that in both arms alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from specbench.models.family import cache_layers, keeps_nothing


class RewindableLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """Keys and values [batch, heads, capacity, head_dim], of which the first `length` positions are valid. Where both
    are of one width they lie in one tensor, `both` [batch, 2 * heads, capacity, head_dim], keys first."""

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.take_room(key_states, value_states, key_states.shape[0])

    def take_room(self, key_states: torch.Tensor, value_states: torch.Tensor, batch: int) -> None:
        """Room for `batch` sequences of such keys and values."""
        heads, width = key_states.shape[1], key_states.shape[-1]
        # Zeros and not whatever was there: a masked NaN is still a NaN.
        if key_states.shape == value_states.shape:
            self.both = key_states.new_zeros(batch, 2 * heads, self.capacity, width)
            self.keys, self.values = self.both[:, :heads], self.both[:, heads:]
        else:
            self.keys = key_states.new_zeros(batch, heads, self.capacity, width)
            self.values = value_states.new_zeros(batch, value_states.shape[1], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def put(self, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`update` for new keys and values [batch, 2 * heads, n, head_dim] that lie in one tensor already."""
        heads, new = both.shape[1] // 2, both.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(both[:, :heads], both[:, heads:])
        self.both.narrow(2, self.length, new).copy_(both)
        self.length += new
        keys, values = self.both.narrow(2, 0, self.length).chunk(2, 1)
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        self.keys.narrow(2, self.length, new).copy_(key_states)
        self.values.narrow(2, self.length, new).copy_(value_states)
        self.length += new
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class RewindableCache(Cache):  # type: ignore[misc]
    """A RewindableLayer where transformers' own cache of the model holds keys and values, and its empty layer where
    that is empty: for a layer without attention, or one that reads another's keys. Layers with a window keep all
    positions (their mask hides the old ones), since a window that has dropped a position cannot be rewound past it."""

    def __init__(self, config: Any, capacity: int) -> None:
        self.capacity = capacity
        super().__init__(layers=layers_for(config, lambda: RewindableLayer(capacity)))

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on."""
        for layer in self.layers:
            layer.length = length

    def first(self, layers: int) -> RewindableCache:
        """A cache of the first `layers` layers that shares what they hold."""
        shared = copy.copy(self)
        shared.layers = self.layers[:layers]
        return shared


def layers_for(config: Any, make: Callable[[], RewindableLayer]) -> list[Any]:
    """A layer of `make` for each that keeps keys and values, an empty one for each that keeps none."""
    kept = cache_layers(config.get_text_config(decoder=True))
    return [DummyLayer() if keeps_nothing(layer) else make() for layer in kept]
