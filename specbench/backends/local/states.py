"""Hidden states of the target that a draft head reads, kept as the target's own passes go by.

The state before layer i is transformers' `hidden_states[i]`; that after the last layer is what the norm gives. Each
pass writes those of its tokens into room taken once, where they stay until tokens are read in their place; what is
rewound need not be wiped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from specbench.backends.local.lean import Taps


class States:
    """What `layers` of a model are given, for up to `capacity` tokens in each of `batch` sequences; side by side in the
    order of `layers` [batch, capacity, layers * hidden]."""

    def __init__(self, layers: Sequence[int], capacity: int, batch: int) -> None:
        self.layers, self.capacity, self.batch = tuple(layers), capacity, batch
        self._kept: Tensor | None = None

    def following(self, past: int, n: int) -> Taps:
        """Keeps states of `n` tokens that follow `past` others in every sequence."""
        return self._taps(lambda room, x: room[: len(x)].narrow(1, past, n).copy_(x))

    def at(self, at: Tensor) -> Taps:
        """Keeps states of tokens at positions `at` [1, n] of every sequence, wherever these are when the states come:
        for a recorded pass."""
        return self._taps(lambda room, x: room.index_copy_(1, at[0], x))

    def placed(self, rows: Tensor, at: Tensor) -> Taps:
        """Keeps states of tokens at `at` [batch, n] of the sequences `rows` [batch, 1]."""

        def put(room: Tensor, x: Tensor) -> None:
            room[rows, at] = x

        return self._taps(put)

    def read(self, begin: int, end: int, row: int = 0) -> Tensor:
        """States [end - begin, layers * hidden] of tokens `begin` to `end` of one sequence."""
        assert self._kept is not None, "no token was read"
        return self._kept[row, begin:end]

    def rows(self, rows: Tensor, at: Tensor) -> Tensor:
        """States [batch, n, layers * hidden] of the tokens `at` [batch, n] of sequences `rows` [batch, 1]."""
        assert self._kept is not None, "no token was read"
        return self._kept[rows, at]

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only."""
        if self._kept is not None:
            self._kept[: len(rows)] = self._kept[rows]

    def _taps(self, put: Any) -> Taps:
        return {layer: partial(self._put, index, put) for index, layer in enumerate(self.layers)}

    def _put(self, index: int, put: Any, x: Tensor) -> None:
        width = x.shape[-1]
        if self._kept is None:
            self._kept = x.new_zeros(self.batch, self.capacity, len(self.layers) * width)
        put(self._kept[..., index * width : (index + 1) * width], x)


@contextmanager
def watched(model: Any, taps: Taps | None) -> Iterator[None]:
    """Hands what transformers' own layers are given to `taps` inside the block. Not every model calls them `layers`:
    those of one that is not watched are not asked for."""
    decoder: Any = model.get_decoder() if taps else None
    handles = []
    for index, tap in (taps or {}).items():
        if index == len(decoder.layers):
            handles.append(decoder.norm.register_forward_hook(partial(_gave, tap)))
        else:
            handles.append(decoder.layers[index].register_forward_pre_hook(partial(_given, tap), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _given(tap: Any, _: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    x = inputs[0] if inputs else named["hidden_states"]
    assert isinstance(x, torch.Tensor)
    tap(x)


def _gave(tap: Any, _: Any, inputs: tuple[Any, ...], x: Any) -> None:
    tap(x)
