"""Passes over a few tokens as CUDA graphs: hundreds of kernel launches recorded once and replayed as one.

A recorded pass has fixed shapes and reads and writes fixed places. So it attends over the whole room of the cache,
masked by the tokens' positions, and token ids and positions are copied to where it reads them. What was recorded is
held against the same pass run plainly before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from specbench.engines.cache import RewindableCache, RewindableLayer
from specbench.engines.lean import LeanDecoder, agree, seen_from

# Runs a pass and returns what replays it, and where its logits then are.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

_WARM_UPS = 3


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass that reads `ids` [batch, n] and positions `at` [n] and leaves `logits` [batch, keep, V]."""

    ids: Tensor
    at: Tensor
    logits: Tensor
    replay: Callable[[], None]


class Graphs:
    """The recorded passes of one model over one cache. Passes are recorded after the cache has read something."""

    def __init__(self, decoder: LeanDecoder, cache: RewindableCache, device: str, record: Recorder) -> None:
        self._decoder = decoder
        self._cache = cache
        self._record = record
        self._places = torch.arange(cache.capacity, device=device)
        self._recorded: dict[tuple[int, int, int], _Recorded] = {}

    def add(self, ids: Tensor, keep: int) -> bool:
        """Record the pass over `ids` [batch, n] that keeps `keep` logits; whether it does what the plain pass does, and
        will be used."""
        past = self._cache.get_seq_length()
        plain = self._decoder(ids, self._cache, keep).clone()
        self._cache.rewind(past)
        at = self._places[past : past + ids.shape[1]].clone()
        kept_ids = ids.clone()
        updates = [partial(put, layer, at) for layer in self._cache.layers]

        def run() -> Tensor:
            return self._decoder.run(kept_ids, at, seen_from(at, self._places), updates, keep)

        try:
            replay, logits = self._record(run)
            replay()
        except RuntimeError:
            return False
        if not agree(plain, logits, plain):  # kernels for other shapes sum in another order
            return False
        self._recorded[(*ids.shape, keep)] = _Recorded(kept_ids, at, logits, replay)
        return True

    def read(self, ids: Tensor, keep: int) -> Tensor | None:
        """Logits [batch, keep, V] of a recorded pass after what the cache holds; None where none was recorded."""
        found = self._recorded.get((*ids.shape, keep))
        past, n = self._cache.get_seq_length(), ids.shape[1]
        if found is None or past + n > self._cache.capacity:
            return None
        found.ids.copy_(ids)
        found.at.copy_(self._places[past : past + n])
        found.replay()
        self._cache.rewind(past + n)
        return found.logits.clone()  # the next replay writes over them


def put(layer: RewindableLayer, at: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, 2 * heads, n, width] into their places `at` [n]; returns all the room of the layer."""
    layer.both.index_copy_(2, at, both)
    return layer.keys, layer.values


def record_on_cuda(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record `run` as a CUDA graph, after a few runs beside the main stream as torch asks for. Raises RuntimeError
    where something in it cannot be recorded."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type for it
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run()
    return graph.replay, logits
