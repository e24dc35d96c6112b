"""Layers whose memory no length rolls back: a snapshot before a pass, and after a rejection what was kept is read
again.

A recurrent state is written over by every token. Engines keep it for each token of a verify pass, in kernels of their
own, and go on with the one that was accepted; transformers returns the last alone. So here a rejection costs a second
pass over the kept tokens, made when the next pass asks for it: it counts as verifying (cost/model.py adds it to what it
predicts). States of convolutions are cut out of what the last pass saw, where a model keeps no others, for nothing.

The target alone reads one token at a time and takes nothing back, so it pays for one snapshot in a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specbench.backends.local.cache import RewindableLayer, StateLayer

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
        self._owed: Tensor | None = None
        self._used = False

    @property
    def rereads(self) -> bool:
        """Whether a rejection costs a pass: not where all states are those of convolutions. After a first pass."""
        return not all(isinstance(layer, StateLayer) and layer.only_convolves for layer in self._layers)

    @property
    def length(self) -> int:
        """How many tokens the layers have read."""
        return self.at + sum(ids.shape[1] for ids in self._since)

    def begin(self, at: int) -> None:
        """Start from what the layers hold, `at` tokens that another model read."""
        self._before, self._since, self._owed = [], [], None
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
            self._take()
            return length
        if length < self.at:  # before the snapshot: from the start
            read = torch.cat([*self._before, *self._since], 1)[:, :length]
            self._restart()
            self._owed = read
            return 0
        self._put(self._held)
        since, self._since = self._since, []
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
        self._since, self._used = [], False

    def _put(self, held: Sequence[dict[str, Any]]) -> None:
        self._used = True
        for layer, each in zip(self._layers, held, strict=True):
            vars(layer).update(_copied(each))

    def _restart(self) -> None:
        self._put(self._empty)
        self._held, self.at, self._before, self._since, self._owed = self._empty, 0, [], [], None
        self._used = False


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
