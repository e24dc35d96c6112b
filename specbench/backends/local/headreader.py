"""A draft head that reads pair after pair, and its memory of one text, or of several side by side; and what heads are
made of, classes of transformers and weight files with the tensors of their configuration.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from specbench.acceptance.rules import queued
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.cached import States
from specbench.backends.local.lean import agree, seen_from
from specbench.backends.local.ragged import RaggedCache
from specbench.drafters.head import DraftHead, ManyDraftHead
from specbench.drafters.model import Read
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.headconfig import Head
from specbench.models.heads import head_files
from specbench.models.memory import ModelMemoryError, is_out_of_memory

COPY_AGAIN = "Copy the head again, with weights and config.json of the same one."


class LayerKind(NamedTuple):
    """transformers' classes for one family of decoder layers."""

    layer: Any
    norm: Any
    rotary: Any


def kind_of_layer(config: Any) -> LayerKind:
    if config.model_type == "qwen3":
        from transformers.models.qwen3 import modeling_qwen3 as qwen3

        return LayerKind(qwen3.Qwen3DecoderLayer, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding)
    from transformers.models.llama import modeling_llama as llama

    return LayerKind(llama.LlamaDecoderLayer, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding)


def tensors_of(head: Head, unused: tuple[str, ...], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by the names that their modules have here, which files call otherwise as `renamed` says; without those
    that begin as one of `unused`, which trainers leave in a checkpoint and no draft reads."""
    found: dict[str, Tensor] = {}
    for file in head_files(head):
        try:
            with safe_open(str(file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  # it is no mapping
                    known = name.removeprefix("model.")
                    for theirs, ours in renamed.items():
                        known = known.replace(theirs, ours)
                    if not known.startswith(unused):
                        found[known] = weights.get_tensor(name)
        except Exception as error:
            raise ModelError(
                f"the weights of {head.name} are truncated or damaged ({type(error).__name__})", hint=COPY_AGAIN
            ) from None
    return found


def vocabulary_of(head: Head, offsets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The target's ids of what a head drafts [draft vocabulary], from the offsets d2t; None where these are all. Raises
    ModelError where they lead out of the vocabulary, meet, or are not those that the mask t2d says."""
    drafts, vocabulary = head.draft_vocab, head.vocab_size
    if drafts is None or vocabulary is None or (offsets is None and drafts == vocabulary):
        return None
    if offsets is None:
        raise ModelError(f"{head.name} does not say which tokens its {drafts:,} are: d2t is missing", hint=COPY_AGAIN)
    if offsets.shape != (drafts,):
        raise misfit(head, "d2t", offsets.shape, (drafts,))
    ids = offsets.long() + torch.arange(drafts)
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        what = f"d2t of {head.name} leads outside the target's {vocabulary:,} tokens, {len(outside):,} times"
    elif (same := len(ids) - len(set(ids.tolist()))) > 0:
        what = f"d2t of {head.name} gives {same:,} tokens the id of another"
    elif mask is not None and mask.shape != (vocabulary,):
        raise misfit(head, "t2d", mask.shape, (vocabulary,))
    elif mask is not None and not torch.equal(mask.bool().nonzero()[:, 0], ids.sort().values):
        apart = drafts - int(mask.bool()[ids].sum())
        what = f"d2t and t2d of {head.name} disagree: {apart:,} of {drafts:,} tokens are not in t2d"
    else:
        return ids
    raise ModelError(what, hint=f"Its target id is id + d2t[id]; {COPY_AGAIN[0].lower()}{COPY_AGAIN[1:]}")


def filled(head: Head, parts: nn.Module, tensors: Mapping[str, Tensor], like: Tensor) -> None:
    """Give `parts`, which have shapes alone, the tensors of a head, where `like` is and in its precision. Raises
    ModelError as `require_shapes` does."""
    require_shapes(head, parts.state_dict(), tensors)
    parts.load_state_dict({name: tensor.to(like) for name, tensor in tensors.items()}, assign=True)
    parts.eval().requires_grad_(False)


def require_same(head: Head, lean: Tensor, whole: Tensor) -> None:
    """Raise ModelError where lean layers do not give what transformers' own modules give for a few tokens."""
    if not agree(whole, lean, whole):
        raise ModelError(
            f"{head.name} gives other drafts here than its layers in transformers", hint="Please report it."
        )


def require_shapes(head: Head, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError where the tensors are not those that are `wanted`, with these shapes."""
    missing = sorted(wanted.keys() - tensors.keys())
    strange = sorted(tensors.keys() - wanted.keys())
    if missing:
        raise ModelError(
            f"{len(missing)} of the weights of {head.name} are missing, {missing[0]} first", hint=COPY_AGAIN
        )
    if strange:
        raise ModelError(
            f"{head.name} holds weights that a head of its configuration has not, {strange[0]} first",
            hint=COPY_AGAIN,
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise misfit(head, name, tensors[name].shape, tensor.shape)


def misfit(head: Head, name: str, found: Sequence[int], wanted: Sequence[int]) -> ModelError:
    return ModelError(
        f"{name} of {head.name} is {' x '.join(map(str, found))}, and should be {' x '.join(map(str, wanted))} by its "
        "config.json and target",
        hint=COPY_AGAIN,
    )


class Network(ABC):
    """The layers of a head, which keep nothing. `reads` are those of the `target_layers` whose inputs it wants, one
    past the last for what the target's norm gives; `config` is what its cache is made from; `forward` says what runs
    its layers, for the record. `masked` [hidden] is given in the place of states where it drafts all tokens at once,
    beside the token `mask_token`; else it is None."""

    masked: Tensor | None = None
    mask_token = 0
    shared_head: Any = None  # the target's last matrix

    def __init__(
        self, head: Head, config: Any, target: LoadedModel, reads: tuple[int, ...], own: list[Tensor], forward: str
    ) -> None:
        text = target.model.config.get_text_config(decoder=True)
        self.head, self.config, self.reads, self.forward = head, config, reads, forward
        self.target_layers, self.vocab_size = int(text.num_hidden_layers), int(text.vocab_size)
        self.device, self.dtype = str(own[0].device), own[0].dtype
        self.own_weights = own

    @property
    def at_once(self) -> bool:
        return self.masked is not None

    @property
    def parameters(self) -> int:
        """Its own, without an embedding or a head that is the target's."""
        return sum(weight.numel() for weight in self.own_weights)

    @property
    def weight_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.own_weights)

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one draft reads: its own, and the target's last matrix where it has none."""
        head = self.shared_head
        return self.weight_bytes + (0 if head is None else head.weight.numel() * head.weight.element_size())

    @abstractmethod
    def fused(self, states: Tensor) -> Tensor:
        """The target's states [.., layers * hidden] as the head reads them [.., its hidden]."""

    @abstractmethod
    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """One pass over tokens `ids` [batch, n] beside what is `given` [batch, n, hidden] for the place before each:
        `fused` states, or own output. `at` [batch or 1, n] are their positions. Own output of each [batch, n, hidden]:
        what is given for the next place, and what `logits` are made from."""

    @abstractmethod
    def logits(self, own: Tensor) -> Tensor:
        """Logits [n, V] over the target's vocabulary of own output [n, hidden]; minus infinity where nothing is ever
        drafted."""


def reads_of(head: Head, target: LoadedModel) -> tuple[int, ...]:
    """The target's layers before which a head reads states."""
    return head.reads(int(target.model.config.get_text_config(decoder=True).num_hidden_layers))


def over_all(small: Tensor, ids: Tensor | None, vocab_size: int) -> Tensor:
    """Logits [n, draft vocabulary] of tokens whose ids in the target are `ids`, over the target's vocabulary [n, V]:
    minus infinity where nothing is ever drafted."""
    if ids is None:
        return small
    return small.new_full((len(small), vocab_size), float("-inf")).index_copy_(1, ids, small)


class HeadReader(DraftHead):
    """A head and its memory of the pairs of one text, with room for `capacity` of them and what a round drafts
    `beyond`. It reads pair after pair, and then its own output or masks."""

    def __init__(self, head: Network, capacity: int, beyond: int = 0) -> None:
        self.head, self.capacity = head, capacity
        self.vocab_size = head.vocab_size
        self.cache = RewindableCache(head.config, capacity + beyond)
        self.own = torch.empty(0)

    @property
    def pairs(self) -> int:
        return int(self.cache.get_seq_length())

    def rewind(self, pairs: int) -> None:
        self.cache.rewind(pairs)

    def read(self, ids: Sequence[int], states: Tensor, keep: int = 1) -> Tensor:
        return self._run(queued(list(ids), self.head.device)[None], self.head.fused(states)[None], keep)

    def drafts(self, ids: Sequence[int], states: Tensor, k: int) -> Read:
        if self.head.at_once:
            rows = iter(self.block(ids, states, k)[:, None])
            return lambda _: next(rows)
        emitted = iter([ids])

        def step(drafted: Sequence[int] | Tensor) -> Tensor:
            first = next(emitted, None)
            return self.step(drafted) if first is None else self.read(first, states)

        return step

    def step(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Read one drafted token beside the output of the pair before it; logits [1, V]."""
        ids = ids if isinstance(ids, Tensor) else queued(list(ids), self.head.device)
        return self._run(ids[None], self.own[None, -1:], 1)

    def block(self, ids: Sequence[int], states: Tensor, k: int) -> Tensor:
        """Read pairs as `read` does and k - 1 masks after them, in one pass; logits [k, V] of the k drafts."""
        masks = k - 1
        assert self.head.masked is not None
        given = torch.cat((self.head.fused(states), self.head.masked.expand(masks, -1)))
        read = queued([*ids, *[self.head.mask_token] * masks], self.head.device)
        return self._run(read[None], given[None], k)

    def deeper(self, first: int, own: Tensor, drafts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        n, end = len(own), first + len(own)
        roots = torch.arange(first, end, device=own.device)
        seen = torch.arange(end, device=own.device) <= roots[:, None]  # [n, pairs]
        alone = torch.eye(n, dtype=torch.bool, device=own.device)
        branch = Branch(self.cache, end)
        for depth, tokens in enumerate(drafts, 1):
            if self.head.masked is not None:
                own, tokens = self.head.masked.expand(n, -1), [self.head.mask_token] * n
            seen = torch.cat((seen, alone), 1)
            ids = queued(list(tokens), self.head.device)[None]
            own = self.head.run(ids, own[None], (roots + depth)[None], seen[None, None], branch)[0]
            yield self.head.logits(own)

    def _run(self, ids: Tensor, given: Tensor, keep: int) -> Tensor:
        past, n = self.pairs, ids.shape[1]
        at = torch.arange(past, past + n, device=ids.device)[None]
        mask = seen_from(at, torch.arange(past + n, device=ids.device)) if n > 1 and past else None
        with out_of_memory(self, f"{past + n} tokens"):
            self.own = self.head.run(ids, given, at, mask, self.cache)[0]
            return self.head.logits(self.own[len(self.own) - keep :])


class ManyHeadReader(ManyDraftHead):
    """A head and its memory of the pairs of up to `states.batch` sequences, whose target keeps `states`."""

    def __init__(self, head: Network, states: States, capacity: int) -> None:
        self.head, self.states, self.capacity = head, states, capacity
        self.vocab_size = head.vocab_size
        self._cache = RaggedCache(head.config, capacity, states.batch)
        self._spots = torch.arange(max(capacity, states.batch), device=head.device)
        self._own = torch.empty(0)  # output of each row's last pair [batch, 1, hidden]

    def begin(self, batch: int) -> None:
        self._cache.lengths = [0] * batch

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        counts = [len(row) for row in rows]
        width = max(counts)
        ids = queued([[*row, *[0] * (width - len(row))] for row in rows], self.head.device)
        at = self._at(width)
        given = self.head.fused(self.states.rows(self._spots[: len(rows), None], at))
        last = queued([[max(count, 1) - 1] for count in counts], self.head.device)[..., None]
        return self._run(ids, given, at, last, counts)

    @property
    def at_once(self) -> bool:
        return self.head.at_once

    def block(self, rows: Sequence[Sequence[int]], k: int) -> Tensor:
        """As drafts, k - 1 masks are read after each row."""
        assert self.head.masked is not None
        counts, device = [len(row) for row in rows], self.head.device
        width, mask = max(counts) + k - 1, self.head.mask_token
        ids = queued([[*row, *[mask] * (width - len(row))] for row in rows], device)
        at, read = self._at(width), queued([[count] for count in counts], device)
        fused = self.head.fused(self.states.rows(self._spots[: len(rows), None], at))
        given = torch.where((self._spots[:width] < read)[..., None], fused, self.head.masked)
        last = queued([[max(count, 1) - 1 + depth for depth in range(k)] for count in counts], device)[..., None]
        return self._run(ids, given, at, last, counts).view(len(rows), k, -1)

    def step(self, ids: Sequence[int] | Tensor, going: Sequence[int]) -> Tensor:
        ids = ids if isinstance(ids, Tensor) else queued(list(ids), self.head.device)
        counts = [int(row in going) for row in range(len(ids))]
        return self._run(ids[:, None], self._own, self._at(1), None, counts)

    def rewind(self, pairs: Sequence[int]) -> None:
        self._cache.lengths = list(pairs)

    def keep(self, rows: Sequence[int]) -> None:
        self._cache.keep(rows, self.head.device)

    def _at(self, width: int) -> Tensor:
        return queued([[start + i for i in range(width)] for start in self._cache.lengths], self.head.device)

    def _run(self, ids: Tensor, given: Tensor, at: Tensor, last: Tensor | None, counts: Sequence[int]) -> Tensor:
        cache = self._cache
        cache.places.rows, cache.places.at = self._spots[: len(ids), None], at
        cache.places.end = max(cache.lengths) + ids.shape[1]
        mask = seen_from(at, self._spots[: cache.places.end])
        with out_of_memory(self, f"{cache.places.end} tokens, batch {len(ids)}"):
            own = self.head.run(ids, given, at, mask, cache)
            self._own = own if last is None else own.take_along_dim(last, 1)
            logits = self.head.logits(self._own.flatten(0, 1))
        cache.lengths = [length + count for length, count in zip(cache.lengths, counts, strict=True)]
        return logits


@contextmanager
def out_of_memory(reader: Any, where: str) -> Iterator[None]:
    """Raises ModelMemoryError where a pass of `reader` does not fit; `where` says what it was over."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelMemoryError(reader, where) from error


class Branch:
    """What a cache holds of its first `end` pairs, and what is read after them, which the cache never sees."""

    def __init__(self, cache: RewindableCache, end: int) -> None:
        self.layers = [_Grown(layer.keys.narrow(2, 0, end), layer.values.narrow(2, 0, end)) for layer in cache.layers]

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """As transformers' layers call it."""
        return self.layers[layer].grow(keys, values)


class _Grown:
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def grow(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._keys, self._values = torch.cat((self._keys, keys), 2), torch.cat((self._values, values), 2)
        return self._keys, self._values

    def put(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """As lean layers call it."""
        keys, values = both.chunk(2, 1)
        return self.grow(keys, values)
