"""Passes over a few tokens as CUDA graphs: hundreds of kernel launches recorded once and replayed as one.

A recorded pass has fixed shapes and reads and writes fixed places. So it attends over a fixed room, masked by the
tokens' positions, and token ids and positions are copied to where it reads them. Each pass is recorded for rooms of
256, 512, .. places up to the whole cache, and the smallest that holds the text is replayed: else one long prompt would
make every step of every other one dearer. What was recorded is held against the same pass run plainly before it is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from specbench.backends.local.cache import RewindableLayer
from specbench.backends.local.lean import LeanDecoder, Taps, Update, agree, seen_from

# Runs a pass and returns what replays it, and where its logits then are.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]

# From positions `at` [batch or 1, n] and a room to what takes the keys and values of each layer to these positions and
# returns all in that room.
Updates = Callable[[Tensor, int], Sequence[Update]]

# From positions `at` to what keeps hidden states of the tokens there.
TapsAt = Callable[[Tensor], Taps]

_WARM_UPS = 3
_SMALLEST_ROOM = 256


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass that reads `ids` [batch, n] at positions `at` [batch or 1, n] and leaves `logits` [batch, keep, V]."""

    ids: Tensor
    at: Tensor
    logits: Tensor
    replay: Callable[[], None]


class Graphs:
    """The recorded passes of one model over one cache, whose room is taken before the first is recorded. `places`
    [capacity] are the positions of the cache."""

    def __init__(
        self, decoder: LeanDecoder, places: Tensor, updates: Updates, record: Recorder, taps: TapsAt | None = None
    ) -> None:
        self._decoder = decoder
        self._taps = taps
        self._places = places
        self._updates = updates
        self._record = record
        self._recorded: dict[tuple[int, int, int, int], _Recorded] = {}
        doublings = range(len(places).bit_length())
        self.rooms = sorted({min(_SMALLEST_ROOM * 2**power, len(places)) for power in doublings})

    def add(self, ids: Tensor, at: Tensor, keep: int, plain: Tensor) -> bool:
        """Record the pass over `ids` at `at` that keeps `keep` logits, for every room; whether each gives what the
        `plain` pass gave, and will be used."""
        return all(self._add(ids.clone(), at.clone(), keep, room, plain) for room in self.rooms)

    def _add(self, ids: Tensor, at: Tensor, keep: int, room: int, plain: Tensor) -> bool:
        places, updates = self._places[:room], self._updates(at, room)
        taps = None if self._taps is None else self._taps(at)

        def run() -> Tensor:
            return self._decoder.run(ids, at, seen_from(at, places), updates, keep, taps)

        try:
            replay, logits = self._record(run)
            replay()
        except RuntimeError:
            return False
        if not agree(plain, logits, plain):  # kernels for other shapes sum in another order
            return False
        self._recorded[(*ids.shape, keep, room)] = _Recorded(ids, at, logits, replay)
        return True

    def has(self, batch: int, n: int, keep: int) -> bool:
        return (batch, n, keep, self.rooms[0]) in self._recorded

    def read(self, ids: Tensor, at: Tensor, keep: int, end: int) -> Tensor:
        """Logits [batch, keep, V] of a recorded pass, of which no token lies at `end` or beyond."""
        room = next(room for room in self.rooms if room >= end)
        found = self._recorded[(*ids.shape, keep, room)]
        found.ids.copy_(ids)
        found.at.copy_(at)
        found.replay()
        return found.logits.clone()  # the next replay writes over them


def put(layer: RewindableLayer, room: int, at: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, 2 * heads, n, width] into their places `at` [1, n]; returns the first `room` places."""
    layer.both.index_copy_(2, at[0], both)
    keys, values = layer.both.narrow(2, 0, room).chunk(2, 1)
    return keys, values


class CudaRecorder:
    """Records passes as CUDA graphs, after a few runs beside the main stream as torch asks for. They share their
    memory, since one is replayed after the other and its logits are copied at once. Raises RuntimeError where something
    in a pass cannot be recorded."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type for it
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        return graph.replay, logits


class Recordable(Protocol):
    """A model whose passes can be recorded."""

    def record(self, widths: Sequence[int], every: bool, recorder: Recorder) -> bool:
        """Record passes over so many tokens, keeping all logits or each row's last; whether all were. Leaves the cache
        empty."""

    def forget(self) -> None:
        """Run plainly again."""


def record_all(wanted: Sequence[tuple[Recordable, Sequence[int], bool]], recorder: Recorder | None = None) -> bool:
    """Record passes of several models. All or none: a model that runs plainly beside one that does not would be
    handicapped."""
    recorder = recorder or CudaRecorder()
    if all(reader.record(widths, every, recorder) for reader, widths, every in wanted):
        return True
    for reader, _, _ in wanted:
        reader.forget()
    return False


def put_all(layers: Sequence[RewindableLayer]) -> Updates:
    """Updates of a cache whose rows are of one length."""
    return lambda at, room: [partial(put, layer, room, at) for layer in layers]
