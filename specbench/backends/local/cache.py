"""A memory that can be rewound, for every kind of layer that transformers' own cache of a model has.

transformers' DynamicCache copies every layer's keys and values at each step to append one token; writing into room
already taken avoids that in both arms alike. What each kind of layer keeps, and how it is rolled back:

- keys and values, also under a window: room for the whole sequence is taken once, rollback is a change of length;
- keys and values beside others of their own (an indexer's), in a layer of transformers that can be cropped: cropped;
- the state of a convolution: cut out of what the last pass saw;
- a recurrent state, and whatever else a layer of transformers keeps: a snapshot, and the kept tokens are read again
  (`Snapshots`).

A recurrent state is written over by every token. Engines keep it for each token of a verify pass, in kernels of their
own, and go on with the one that was accepted; transformers returns the last alone. So here a rejection costs a second
pass over the kept tokens, made when the next pass asks for it: it counts as verifying (cost/model.py adds it to what it
predicts). States of convolutions are cut out of what the last pass saw, where a model keeps no others, for nothing.

The target alone reads one token at a time and takes nothing back, so it pays for one snapshot in a text.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, LinearAttentionLayer

from specbench.models.family import Memory, cache_layers, memory_of, own_cache


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


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """Convolution and recurrent states, of one size whatever the length. `past` are the inputs of each convolution as
    the last pass saw them [batch, channels, kernel + n]: without a recurrent state beside it, a state of before is cut
    out of these."""

    def __init__(self, number_of_states: int) -> None:
        super().__init__(number_of_states)
        self.past: dict[int, Tensor] = {}

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **more: Any) -> Tensor:
        found: Tensor = super().update_conv_state(conv_states, state_idx, **more)
        self.past[state_idx] = found
        return found

    @property
    def only_convolves(self) -> bool:
        """Whether it has no recurrent state; known after a first pass."""
        return not any(self.is_recurrent_states_initialized.values())

    def can_cut(self, tokens: int) -> bool:
        """Whether the last `tokens` of the last pass, which read more than one, can be taken back."""
        return self.only_convolves and all(
            seen.shape[-1] >= self.conv_states[at].shape[-1] + tokens for at, seen in self.past.items()
        )

    def cut(self, tokens: int) -> None:
        for at, seen in self.past.items():
            state = self.conv_states[at]
            state.copy_(seen[..., -state.shape[-1] - tokens : -tokens])


class HybridLayer(StateLayer, RewindableLayer):
    is_compileable = False

    def __init__(self, capacity: int, number_of_states: int) -> None:
        RewindableLayer.__init__(self, capacity)
        StateLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *both: Tensor, **states: Any) -> None:
        if both:
            RewindableLayer.lazy_initialization(self, *both)
        else:
            LinearAttentionLayer.lazy_initialization(self, **states)


class RewindableCache(Cache):  # type: ignore[misc]
    """A layer of ours for each that transformers' own cache of the model has. Layers with a window keep all positions
    (their mask hides the old ones), since a window that has dropped a position cannot be rewound past it. `states` are
    the layers that no length rolls back."""

    def __init__(self, config: Any, capacity: int) -> None:
        self.capacity = capacity
        kept = cache_layers(config.get_text_config(decoder=True))
        # One mask serves all layers with a window: where one of them keeps no more than that, all do.
        whole = not any(memory_of(layer) == "other" and getattr(layer, "is_sliding", False) for layer in kept)
        Cache.__init__(self, layers=[_layer(layer, capacity, whole) for layer in kept])
        theirs = [layer for layer in self.layers if layer in kept]
        self._cropped = [layer for layer in theirs if memory_of(layer) in ("indexed", "cropped")]
        self.states = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        self.states += [layer for layer in theirs if layer not in self._cropped]

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on, but for the `states`."""
        for layer in self._cropped:
            if length == 0:
                layer.reset()
            else:
                layer.crop(length - layer.get_seq_length())
        for layer in self.layers:
            layer.length = length

    def first(self, layers: int) -> RewindableCache:
        """A cache of the first `layers` layers that shares what they hold."""
        shared = copy.copy(self)
        shared.layers = self.layers[:layers]
        shared._cropped = [layer for layer in self._cropped if layer in shared.layers]
        shared.states = [layer for layer in self.states if layer in shared.layers]
        return shared


def rewindable(config: Any, capacity: int) -> RewindableCache:
    """A cache for a model of this configuration, of the class that it insists on."""
    own = own_cache(config)
    return RewindableCache(config, capacity) if own is None else _of_class(own)(config, capacity)


@functools.cache
def _of_class(own: type[Cache]) -> type[RewindableCache]:
    return type(own.__name__, (_LinearCache, own), {})


class _LinearCache(RewindableCache):
    """For a model that asks its cache, and not the layers of it, for the states of linear attention (MiniMax)."""

    linear_cache = ()

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        found: Tensor | None = self.layers[layer_idx].recurrent_states[0]
        return found

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        self.layers[layer_idx].update_recurrent_state(linear_cache)


def layers_for(config: Any, make: Callable[[Memory], RewindableLayer]) -> list[Any]:
    """A layer of `make` for each that keeps keys and values, an empty one for each that keeps none."""
    kept = map(memory_of, cache_layers(config.get_text_config(decoder=True)))
    return [DummyLayer() if memory == "nothing" else make(memory) for memory in kept]


def _layer(kept: Any, capacity: int, whole: bool) -> Any:
    """What stands for a layer of transformers' cache; `whole` where windows keep all positions."""
    memory = memory_of(kept)
    if memory == "nothing":
        return DummyLayer()
    if memory == "keys" and (whole or not kept.is_sliding):
        return RewindableLayer(capacity)
    if memory == "states":
        return StateLayer(kept.number_of_states)
    return HybridLayer(capacity, kept.number_of_states) if memory == "both" else kept


# Of a layer that also keeps keys and values: what belongs to these.
_OF_KEYS = {"keys", "values", "both", "length", "capacity", "is_initialized"}


class Snapshots:
    """What `layers` held after `at` tokens, and which tokens were read since."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers
        self._empty = [_held(layer) for layer in layers]
        self._held = self._empty
        self.at = 0
        self._before: list[Tensor] = []
        self._since: list[Tensor] = []
        self._new = 0  # tokens of `_since`, of which the target alone adds one a pass
        self._owed: Tensor | None = None
        self._used = False

    @property
    def rereads(self) -> bool:
        """Whether a rejection costs a pass: not where all states are those of convolutions. After a first pass."""
        return not all(isinstance(layer, StateLayer) and layer.only_convolves for layer in self._layers)

    @property
    def length(self) -> int:
        """How many tokens the layers have read."""
        return self.at + self._new

    def begin(self, at: int) -> None:
        """Start from what the layers hold, `at` tokens that another model read."""
        self._before, self._since, self._new, self._owed = [], [], 0, None
        self._take()
        self.at = at

    def before(self, width: int) -> None:
        """Before a pass over `width` tokens. Nothing is copied between single tokens: few of them are ever taken back,
        and those that are can be read again. What was put back is copied anew, so that a pass that a probe repeats from
        one place costs what it costs in a text."""
        last = self._since[-1].shape[1] if self._since else 1
        if (self._since or self._used) and max(width, last) > 1:
            self._take()

    def read(self, ids: Tensor) -> None:
        """After a pass over `ids` [batch, n]."""
        self._since.append(ids)
        self._new += ids.shape[1]

    def owed(self) -> Tensor | None:
        """The tokens [batch, n] that are to be read again before anything else, asked for once."""
        owed, self._owed = self._owed, None
        return owed

    def rewind(self, length: int) -> int:
        """Go back to `length` tokens, or as far before it as need be: how many the layers have read then. What is
        missing is owed."""
        if length == 0:
            self._restart()
            return 0
        if self._owed is not None and length >= self.at:
            self._owed = self._owed[:, : length - self.at]
            return self.at
        last = self._since[-1] if self._since else None
        surplus = self.length - length
        if surplus == 0:
            return length
        if last is not None and 0 < surplus < last.shape[1] and self._cut(surplus):
            self._since[-1] = last[:, :-surplus]
            self._new -= surplus
            self._take()
            return length
        if length < self.at:  # before the snapshot: from the start
            read = torch.cat([*self._before, *self._since], 1)[:, :length]
            self._restart()
            self._owed = read
            return 0
        self._put(self._held)
        since, self._since, self._new = self._since, [], 0
        if length > self.at:
            self._owed = torch.cat(since, 1)[:, : length - self.at]
        return self.at

    def _cut(self, tokens: int) -> bool:
        """Whether all layers could take back some of the last pass by themselves."""
        able = all(isinstance(layer, StateLayer) and layer.can_cut(tokens) for layer in self._layers)
        if able:
            for layer in self._layers:
                layer.cut(tokens)
        return able

    def _take(self) -> None:
        self._held = [_held(layer) for layer in self._layers]
        self.at = self.length
        self._before += self._since
        self._since, self._new, self._used = [], 0, False

    def _put(self, held: Sequence[dict[str, Any]]) -> None:
        self._used = True
        for layer, each in zip(self._layers, held, strict=True):
            vars(layer).update(_copied(each))

    def _restart(self) -> None:
        self._put(self._empty)
        self._held, self.at, self._before, self._since, self._owed = self._empty, 0, [], [], None
        self._new, self._used = 0, False


def _held(layer: Any) -> dict[str, Any]:
    """What a layer keeps, but for keys and values that are rolled back by their length."""
    keys = _OF_KEYS if isinstance(layer, RewindableLayer) else ()
    return {name: _copied(value) for name, value in vars(layer).items() if name not in keys and name != "past"}


def _copied(value: Any) -> Any:
    """Tensors may be written over in place, wherever they are kept."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
