"""A transformers model in process, one sequence or several of equal length, behind the loop's `Target`; and the hidden
states that a draft head reads, kept as its passes go by.

The state before layer i is transformers' `hidden_states[i]`; that after the last layer is what the norm gives. Each
pass writes those of its tokens into room taken once, where they stay until tokens are read in their place; what is
rewound need not be wiped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specbench.acceptance.rules import queued
from specbench.backends.local.cache import Snapshots, rewindable
from specbench.backends.local.graphs import Graphs, Recorder, put_all
from specbench.backends.local.lean import Packed, Taps, decoder_of
from specbench.errors import EngineError, ModelError
from specbench.models.family import CACHE_NAMES, require_family, takes, unlike_keys
from specbench.models.memory import ModelMemoryError, is_out_of_memory


class ModelReader:
    """A causal language model that reads `batch` sequences of up to `capacity` tokens each. Raises ModelError for
    models whose memory cannot be rewound."""

    def __init__(self, model: Any, capacity: int, batch: int) -> None:
        require_family(model.config, type(model).__name__)
        self.config = model.config.get_text_config(decoder=True)
        self.model, self.capacity, self.batch = model, capacity, batch
        self.device = str(model.device)
        self.vocab_size = int(self.config.vocab_size)
        self.states: States | None = None
        self._lean = decoder_of(model)
        self._graphs: Graphs | None = None
        packed_head(model)

    def keeping(self, layers: Sequence[int]) -> Self:
        """This model, over the same cache, which also keeps the hidden states that these layers are given: `states` of
        every token it reads. A pass of it costs what the copies cost; one of this model costs nothing more. Raises
        ModelError where its layers, or the norm after them, are called otherwise than by most."""
        decoder: Any = self.model.get_decoder()
        if not hasattr(decoder, "layers") or (len(decoder.layers) in layers and not hasattr(decoder, "norm")):
            raise ModelError(
                f"{type(self.model).__name__} ({self.config.model_type}) has no layers here whose states a head could "
                "read",
                hint="Use a draft model or a look-up.",
            )
        twin = copy.copy(self)
        twin._graphs = None
        twin.states = States(layers, self.capacity, self.batch)
        return twin

    def forget(self) -> None:
        """Run plainly again."""
        self._graphs = None


class CachedModel(ModelReader):
    """The model with a KV cache whose sequences are of one length. Raises ModelMemoryError where a pass does not
    fit."""

    def __init__(self, model: Any, capacity: int, batch: int = 1) -> None:
        super().__init__(model, capacity, batch)
        self.cache = rewindable(self.config, capacity)
        self._snapshots = Snapshots(self.cache.states) if self.cache.states else None
        self._lender: CachedModel | None = None
        self._pass = pass_of(model)
        self.length = 0

    def forward(self, ids: Sequence[int] | Tensor, keep: int) -> Tensor:
        """Read `ids`, return logits [keep, V] after the last `keep` of them. For a batch of one. Ids that are a tensor
        [n] on the device come from a model, and are not looked at."""
        return self._forward(ids[None], keep)[0] if isinstance(ids, Tensor) else self.forward_rows([ids], keep)[0]

    def forward_rows(self, rows: Sequence[Sequence[int]], keep: int) -> Tensor:
        """Read one row of ids, all of one length, in each of the `batch` sequences; logits [batch, keep, V]."""
        if len(rows) != self.batch:
            raise ValueError(f"{len(rows)} rows for a batch of {self.batch}")
        highest = max(map(max, rows))
        if highest >= self.vocab_size:
            raise EngineError(
                f"The text holds token id {highest}, the model knows only {self.vocab_size}",
                hint="Choose a draft with the target's vocabulary.",
            )
        return self._forward(queued(rows, self.device), keep)

    def reread(self, rows: Sequence[Sequence[int]]) -> None:
        """Read what stays after a rejection again, as the next pass does by itself: no snapshot goes before it."""
        self._forward(queued(rows, self.device), 1, again=True)

    def _forward(self, ids: Tensor, keep: int, *, again: bool = False) -> Tensor:
        if self._snapshots is not None and not again:
            if self._lender is None:
                self._settle()
            elif self._snapshots.at == self._snapshots.length:
                self._lender._settle()
                self._snapshots.begin(self._lender.length)
            self._snapshots.before(ids.shape[1])
        try:
            logits = self._read(ids, keep)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tokens = f"{self.length + ids.shape[1]} tokens"
            raise ModelMemoryError(self, tokens if self.batch == 1 else f"{tokens}, batch {self.batch}") from error
        if self._snapshots is not None:
            self._snapshots.read(ids)
        self.length += ids.shape[1]
        return logits

    def _settle(self) -> None:
        """Read again what was kept of the last pass, where that is owed."""
        if self._snapshots is not None and (again := self._snapshots.owed()) is not None:
            self._forward(again, 1, again=True)

    def _read(self, ids: Tensor, keep: int) -> Tensor:
        # The cache's own length: twins of this model share it, and whoever rewinds one rewinds both.
        past = self.cache.get_seq_length() if self._snapshots is None else self._snapshots.length
        n = ids.shape[1]
        if self._graphs is not None and self._graphs.has(self.batch, n, keep) and past + n <= self.capacity:
            logits = self._graphs.read(ids, self._places[past : past + n][None], keep, past + n)
            self.cache.rewind(past + n)
            return logits
        if self._lean is not None:
            taps = None if self.states is None else self.states.following(past, n)
            return self._lean(ids, self.cache, keep, taps)
        if self.states is None:
            return self._pass.read(self.model, ids, self.cache, keep, past)
        with watched(self.model, self.states.following(past, n)):
            return self._pass.read(self.model, ids, self.cache, keep, past)

    @torch.inference_mode()
    def record(self, widths: Sequence[int], every: bool, recorder: Recorder) -> bool:
        """Record passes over so many tokens, keeping all logits or the last; whether all were. Leaves the cache
        empty."""
        self._graphs = None
        if self._lean is None:
            return False
        self._places = torch.arange(self.capacity, device=self.device)
        self.rewind(0)
        self.forward_rows([[0, 0]] * self.batch, 1)
        taps = None if self.states is None else self.states.at
        past, graphs = self.length, Graphs(self._lean, self._places, put_all(self.cache.layers), recorder, taps)
        ids = torch.zeros(self.batch, max(widths), dtype=torch.long, device=self.device)

        def add(width: int) -> bool:
            self.rewind(past)
            keep, new = (width if every else 1), ids[:, :width]
            return graphs.add(new, self._places[past : past + width][None], keep, self._forward(new, keep))

        done = all(map(add, widths))
        self._graphs = graphs if done else None
        self.rewind(0)
        return done

    @property
    def rereads(self) -> bool:
        """Whether the next pass after a rejection reads the kept tokens again; known after a first pass."""
        return self._snapshots is not None and self._snapshots.rereads

    def sharing(self, cut: Any) -> CachedModel:
        """`cut`, this model after its first layers (drafters.skip), reading and writing the cache of those layers.
        States among these are as this model left them when it begins to read, and again when it is rewound to there."""
        twin = copy.copy(self)
        twin.model, twin._lean, twin._graphs = cut, decoder_of(cut), None
        twin.cache = self.cache.first(len(cut.get_decoder().layers))
        if self._snapshots is not None:
            twin._snapshots, twin._lender = Snapshots(twin.cache.states), self
        return twin

    def rewind(self, length: int) -> None:
        """Keep only the first `length` tokens of each sequence. Where layers have states, some may be read again by the
        next pass."""
        if self._snapshots is not None:
            length = self._snapshots.rewind(length)
        self.cache.rewind(length)
        self.length = length


@dataclass(frozen=True, slots=True)
class Pass:
    """What transformers' own forward of a model is given beside ids and cache. A model that takes no number of logits
    to keep (`keeps`) gives all, and the rest is cut off; one that also reads images remembers from text to text where
    it was, and some with states count from zero in every pass, so these are told (`told`). `cache_name` is what it
    calls the cache."""

    keeps: bool
    told: bool
    cache_name: str

    def read(self, model: Any, ids: Tensor, cache: Cache, keep: int, past: int) -> Tensor:
        """One pass over `ids` [batch, n] that follow `past` others; logits [batch, keep, V] after the last `keep`, or
        after all with 0."""
        more: dict[str, Any] = {"logits_to_keep": keep} if self.keeps else {}
        if self.told:
            more["position_ids"] = torch.arange(past, past + ids.shape[1], device=ids.device).expand(ids.shape)
        more[self.cache_name] = cache
        logits: Tensor = model(input_ids=ids, use_cache=True, **more).logits
        return logits[:, -keep:] if keep else logits


def pass_of(model: Any) -> Pass:
    text = model.config.get_text_config(decoder=True)
    forward = type(model).forward
    told = text is not model.config or (bool(unlike_keys(text)) and takes(forward, "position_ids"))
    cache_name = next((name for name in CACHE_NAMES if takes(forward, name)), CACHE_NAMES[0])
    return Pass(keeps=takes(forward, "logits_to_keep"), told=told, cache_name=cache_name)


def packed_head(model: Any) -> None:
    """See to it that the head of a model gets packed hidden states; once for each model."""
    head = model.get_output_embeddings()
    if head is not None and not isinstance(head, Packed) and not head._forward_pre_hooks:
        head.register_forward_pre_hook(_packed)


def _packed(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hidden states whose first rows were cut off keep the strides of the whole; torch then copies the entire weight
    of the head at each call (70 ms instead of 8 for the embedded draft's two-token step). A copy of them does not:
    `contiguous()` would return the view, since a dimension of size 1 may have any stride."""
    hidden, *rest = inputs
    return (hidden.clone(memory_format=torch.contiguous_format), *rest)


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
