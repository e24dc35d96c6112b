"""Several sequences of different lengths side by side: one forward pass, and each row's cache grows and rolls back on
its own.

Rows are kept from the left, without gaps; a row that reads fewer tokens than the widest is padded, and what its padding
writes is overwritten by the next tokens. Attention is masked by position, so no row sees padding. Recorded passes have
a power of two of rows, and rows that are not there read padding as well.

transformers builds masks for rows of one length, and here every row stands at a position of its own. What a token may
see (a window, a chunk, what else a model adds) is a function of two positions, made by the model itself and handed to
whoever writes the mask. So for the time of one pass we are that writer, and ask the function at each row's own
positions: nothing of it is taken from a configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from specbench.acceptance.rules import queued
from specbench.backends.local.cache import RewindableLayer, layers_for
from specbench.backends.local.cached import ModelReader, watched
from specbench.backends.local.graphs import Graphs, Recorder
from specbench.backends.local.lean import Taps, Update, seen_from
from specbench.kinds import MAX_GAMMA
from specbench.models.family import Memory, memory_of, require_batches

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


# Tokens that a pass of a batch may be wider than the last room of a row: drafts, and what a draft model has missed.
WIDEST = 2 * (MAX_GAMMA + 1)


class _Places:
    """Where the tokens of a pass go, for all layers of a cache: those of `rows` [batch, 1] into the places `at`
    [batch, n] of these, and `end` is one past the last that any may see. `batch` is how many rows there is room for."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.rows = self.at = torch.empty(0)
        self.end = 0


class _RaggedLayer(RewindableLayer):
    """Keys and values of all rows that there is room for, of which the first are in use. It knows the places and not
    the cache: with a reference back a cache would outlive its trial, until Python looks for cycles."""

    def __init__(self, capacity: int, places: _Places) -> None:
        super().__init__(capacity)
        self.places = places

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.take_room(key_states, value_states, self.places.batch)

    def put(self, both: Tensor) -> tuple[Tensor, Tensor]:
        heads = both.shape[1] // 2
        if not self.is_initialized:
            self.lazy_initialization(both[:, :heads], both[:, heads:])
        return put_rows(self, self.places.rows, self.places.at, self.places.end, both)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, rows, at, end = len(key_states), self.places.rows, self.places.at, self.places.end
        self.keys[rows, :, at] = key_states.transpose(1, 2)
        self.values[rows, :, at] = value_states.transpose(1, 2)
        return self.keys[:batch].narrow(2, 0, end), self.values[:batch].narrow(2, 0, end)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.places.end, 0


class _RaggedIndexLayer(_RaggedLayer):
    """Beside keys and values those of an index [batch, heads, capacity, width]."""

    index: Tensor | None = None

    def update_index(self, idx_k: Tensor) -> Tensor:
        """Takes keys [batch, heads, n, width] and returns all of them."""
        if self.index is None:
            self.index = idx_k.new_zeros(self.places.batch, idx_k.shape[1], self.capacity, idx_k.shape[-1])
        self.index[self.places.rows, :, self.places.at] = idx_k.transpose(1, 2)
        return self.index[: len(idx_k)].narrow(2, 0, self.places.end)

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """The same for keys [batch, n, width]."""
        return self.update_index(indexer_key_states[:, None])[:, 0]


def put_rows(layer: RewindableLayer, rows: Tensor, at: Tensor, end: int, both: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, 2 * heads, n, width] into the places `at` [batch, n] of the first `rows` [batch, 1];
    returns the first `end` places of these rows."""
    layer.both[rows, :, at] = both.transpose(1, 2)
    keys, values = layer.both[: len(both)].narrow(2, 0, end).chunk(2, 1)
    return keys, values


class RaggedCache(Cache):  # type: ignore[misc]  # transformers has no types
    """A cache whose rows have lengths of their own; `lengths[b]` tokens of row b are valid."""

    def __init__(self, config: Any, capacity: int, batch: int) -> None:
        self.capacity = capacity
        self.places = _Places(batch)
        self.lengths: list[int] = []

        def layer(memory: Memory) -> _RaggedLayer:
            return (_RaggedIndexLayer if memory == "indexed" else _RaggedLayer)(capacity, self.places)

        super().__init__(layers=layers_for(config, layer))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths, default=0)

    def keep(self, rows: Sequence[int], device: str) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        chosen, used = queued(rows, device), self.get_seq_length()
        for layer in self.layers:
            if memory_of(layer) == "nothing":
                continue
            for name in ("both", "index") if hasattr(layer, "both") else ("keys", "values", "index"):
                if (kept := getattr(layer, name, None)) is not None:
                    kept[: len(rows), :, :used] = kept[chosen, :, :used]


class RaggedModel(ModelReader):
    """The model over sequences that each have a length of their own, padding included in their room. Raises ModelError
    for models that cannot be told each row's positions."""

    def __init__(self, model: Any, capacity: int, batch: int) -> None:
        super().__init__(model, capacity, batch)
        require_batches(model.config, type(model).__name__)
        self._cache = RaggedCache(self.config, capacity, batch)
        # A table of positions ends at the context, and padding may stand beyond it.
        self._last = (getattr(self.config, "max_position_embeddings", None) or capacity) - 1
        self._spots = torch.arange(max(capacity, batch), device=self.device)

    def begin(self, batch: int) -> None:
        if batch > self._cache.places.batch:
            raise ValueError(f"{batch} sequences, and room for {self._cache.places.batch}")
        self._cache.lengths = [0] * batch

    def forward(self, rows: Sequence[Sequence[int]] | Tensor, *, every: bool) -> Tensor:
        """Read one row of tokens in each sequence; rows may differ in length, and an empty one reads nothing. Logits
        [batch, n, V] after each of the widest row's n tokens if `every`, else [batch, V] after each row's last. Ids
        that are a tensor [batch, n] on the device come from a model, and are not looked at."""
        lengths, counts = self._cache.lengths, [len(row) for row in rows]
        batch, width = len(counts), max(counts)
        recorded = self._recorded(batch, width)
        absent = (recorded or batch) - batch
        starts = [*lengths, *[0] * absent]
        at = [list(range(start, start + width)) for start in starts]
        if isinstance(rows, Tensor):
            ids, places = functional.pad(rows, (0, 0, 0, absent)), queued(at, self.device)
        else:
            numbers = [[*row, *[0] * (width - len(row))] for row in [*rows, *[[]] * absent]]
            ids, places = queued([*numbers, *at], self.device).view(2, -1, width)
        last = None if every or width == 1 else queued([[max(count, 1) - 1] for count in counts], self.device)
        if recorded is not None and self._graphs is not None:
            logits = self._graphs.read(ids, places, width, max(starts) + width)[:batch]
            logits = logits if last is None else logits.take_along_dim(last[..., None], 1)
        else:
            logits = self._read(ids, places, width if last is None else last)
        self._cache.lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        return logits if every else logits[:, 0]

    def _read(self, ids: Tensor, at: Tensor, keep: int | Tensor) -> Tensor:
        """Logits [batch, n, V] of a plain pass over `ids` at `at` [batch, n], or those of each row at `keep`
        [batch, 1]."""
        cache, width = self._cache, ids.shape[1]
        cache.places.rows, cache.places.at = self._spots[: len(ids), None], at
        cache.places.end = max(cache.lengths) + width
        taps = None if self.states is None else self.states.placed(cache.places.rows, at)
        if self._lean is not None:
            return self._lean.run(ids, at, self._visible(at), [layer.put for layer in cache.layers], keep, taps)
        wanted, where = (0, None) if isinstance(keep, int) else torch.unique(keep[:, 0], return_inverse=True)
        with masks_at(at), watched(self.model, taps):
            out = self.model(
                input_ids=ids,
                position_ids=at.clamp_max(self._last),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=wanted,
            )
        logits: Tensor = out.logits
        return logits if where is None else logits.take_along_dim(where[:, None, None], 1)

    def _visible(self, at: Tensor) -> Tensor:
        """Mask [batch, 1, n, end]: a token sees every position of its row up to its own."""
        return seen_from(at, self._spots[: self._cache.places.end])

    def rewind(self, lengths: Sequence[int]) -> None:
        self._cache.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self._cache.keep(rows, self.device)
        if self.states is not None:
            self.states.keep(queued(rows, self.device))

    @torch.inference_mode()
    def record(self, widths: Sequence[int], every: bool, recorder: Recorder) -> bool:
        """Record passes over so many tokens in 1, 2, 4 .. rows, up to all; whether all were. Leaves no sequence."""
        cache = self._cache
        if self._lean is None:
            return False
        batch = cache.places.batch
        self.begin(batch)
        self.forward([[0, 0]] * batch, every=False)

        def updates(at: Tensor, room: int) -> Sequence[Update]:
            rows = self._spots[: len(at), None]
            return [partial(put_rows, layer, rows, at, room) for layer in cache.layers]

        taps = None if self.states is None else self._placed
        graphs, done = Graphs(self._lean, self._spots[: self.capacity], updates, recorder, taps), True
        for rows in sorted({min(2**power, batch) for power in range(batch.bit_length() + 1)}):
            cache.lengths = [2] * rows
            for width in widths:
                ids = torch.zeros(rows, width, dtype=torch.long, device=self.device)
                at = self._spots[2 : 2 + width].repeat(rows, 1)
                done = done and graphs.add(ids, at, width, self._read(ids, at, width))
        self._graphs = graphs if done else None
        self.begin(0)
        return done

    def _placed(self, at: Tensor) -> Taps:
        assert self.states is not None
        return self.states.placed(self._spots[: len(at), None], at)

    def _recorded(self, rows: int, width: int) -> int | None:
        """Rows of the smallest recorded pass that takes so many; None where there is none."""
        if self._graphs is None:
            return None
        sizes = (min(2**power, self._cache.places.batch) for power in range(rows.bit_length() + 1))
        return next((size for size in sizes if size >= rows and self._graphs.has(size, width, width)), None)
