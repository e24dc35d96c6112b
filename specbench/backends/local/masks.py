"""The masks of a pass in which every row stands at a position of its own.

transformers builds masks for rows of one length. What a token may see (a window, a chunk, what else a model adds) is a
function of two positions, made by the model itself and handed to whoever writes the mask. So for the time of one pass
we are that writer, and ask the function at each row's own positions: nothing of it is taken from a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

# From numbers of row, head, query position and key position to whether the one sees the other.
Sees = Callable[..., Tensor]


@contextmanager
def masks_at(at: Tensor) -> Iterator[None]:
    """Inside the block, masks that models ask transformers for are those of queries at the positions `at` [batch, n],
    over keys whose place is their position."""
    writers = {"sdpa": partial(_written, at), "eager": partial(_added, at)}
    try:
        for name, write in writers.items():
            ALL_MASK_ATTENTION_FUNCTIONS[name] = write
        yield
    finally:
        for name in writers:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]


def _written(at: Tensor, *, kv_length: int, mask_function: Sees, use_vmap: bool = False, **unused: Any) -> Tensor:
    """Mask [batch, 1, n, kv_length], True where a query sees a key."""
    rows, keys = torch.arange(len(at), device=at.device), torch.arange(kv_length, device=at.device)
    if use_vmap:  # a function that a model brings along need not take more than one number at a time
        return _one_by_one(mask_function, rows, at, keys)
    head = torch.zeros(1, dtype=torch.long, device=at.device)
    seen = mask_function(rows[:, None, None, None], head[None, :, None, None], at[:, None, :, None], keys)
    return seen.expand(len(at), 1, at.shape[1], kv_length)


def _added(at: Tensor, *, dtype: torch.dtype, **asked: Any) -> Tensor:
    """The same as numbers to add to scores: 0 where a query sees a key, and the lowest of its kind elsewhere."""
    seen = _written(at, **asked)
    return torch.zeros(seen.shape, dtype=dtype, device=at.device).masked_fill(~seen, torch.finfo(dtype).min)


def _one_by_one(sees: Sees, rows: Tensor, at: Tensor, keys: Tensor) -> Tensor:
    over_keys = torch.vmap(sees, in_dims=(None, None, None, 0))
    over_queries = torch.vmap(over_keys, in_dims=(None, None, 0, None))
    over_rows = torch.vmap(over_queries, in_dims=(0, None, 0, None))
    found: Tensor = over_rows(rows, torch.zeros_like(rows[0]), at, keys)  # [batch, n, kv_length]
    return found[:, None]
