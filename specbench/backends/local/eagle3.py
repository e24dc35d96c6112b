"""An EAGLE-3 or P-EAGLE head: a few decoder layers that read the target's hidden states and draft its next tokens.

The pair of place i is the token at i + 1 and the target's states of the token at i; of it the head drafts token i + 2.
Drafting on, its own output takes the place of the states. In P-EAGLE (parallel drafting) a mask token and a learned
state take the place of token and states, and one pass drafts all tokens of a round. The layers are transformers' own,
whose first reads twice the width; they run as lean layers, which are held against transformers' attention and
feed-forward when a head is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from specbench.acceptance.rules import queued
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.lean import Frame, LeanLayer, Norm, Update, agree, seen_from
from specbench.backends.local.packed import Packed, joined
from specbench.backends.local.ragged import RaggedCache
from specbench.backends.local.states import States
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.heads import Head, head_files, require_fit
from specbench.models.memory import ModelMemoryError, is_out_of_memory

_COPY_AGAIN = "Copy the head again, with weights and config.json of the same one."

# Tensors that trainers leave in a checkpoint and no draft reads.
_UNUSED = ("verifier_norm.", "verifier_lm_head.", "rotary_emb.")


class _Parts(nn.Module):
    """The weights of a head under the names of its file, in transformers' modules."""

    def __init__(self, head: Head, states: int) -> None:
        super().__init__()
        kind = _kind(head.layer)
        self.fc = nn.Linear(states * head.target_hidden, head.hidden, bias=False)
        self.layers = nn.ModuleList(kind.layer(head.layer, index) for index in range(head.layer.num_hidden_layers))
        first: Any = self.layers[0]
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(first.self_attn, name)
            setattr(first.self_attn, name, nn.Linear(2 * head.hidden, old.out_features, bias=old.bias is not None))

        def norm(width: int) -> nn.Module:
            made: nn.Module = kind.norm(width, eps=head.layer.rms_norm_eps)
            return made

        first.hidden_norm = norm(head.hidden)
        self.norm = norm(head.hidden)
        self.lm_head = nn.Linear(head.hidden, head.draft_vocab, bias=False)
        if head.mask_token is not None:
            self.mask_hidden = nn.Parameter(torch.empty(states * head.target_hidden))
        if head.norm_before_fc:
            self.input_norm = norm(states * head.target_hidden)
        if head.fc_norm:
            self.fc_norm = nn.ModuleList(norm(head.target_hidden) for _ in range(states))


class _Kind:
    """transformers' classes for one family of decoder layers."""

    def __init__(self, layer: Any, norm: Any, rotary: Any) -> None:
        self.layer, self.norm, self.rotary = layer, norm, rotary


def _kind(config: Any) -> _Kind:
    if config.model_type == "qwen3":
        from transformers.models.qwen3 import modeling_qwen3 as qwen3

        return _Kind(qwen3.Qwen3DecoderLayer, qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding)
    from transformers.models.llama import modeling_llama as llama

    return _Kind(llama.LlamaDecoderLayer, llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding)


class Eagle3:
    """A loaded head. `reads` are those of the `target_layers` whose inputs it wants; `ids` [draft vocabulary] the
    target's ids of what it drafts, None where these are all; `forward` says what runs its layers, for the record."""

    def __init__(
        self, head: Head, parts: _Parts, embed: Any, reads: tuple[int, ...], layers: int, ids: Tensor | None
    ) -> None:
        self.target_layers = layers
        self.head, self.reads, self.vocab_size, self.config = head, reads, head.vocab_size, head.layer
        self.parts, self.embed, self.ids = parts, embed, ids
        weight = parts.lm_head.weight
        self.device, self.dtype = str(weight.device), weight.dtype
        first: Any = parts.layers[0]
        self.rotary = _kind(head.layer).rotary(head.layer).to(weight.device)
        self.layers = [LeanLayer(layer) for layer in parts.layers]
        self._hidden_norm, self._norm = Norm(first.hidden_norm), Norm(parts.norm)
        # Of a module mypy knows only that a call gives anything.
        self._fc: Callable[[Tensor], Tensor] = joined([parts.fc]).forward
        small = joined([parts.lm_head])
        self._lm_head: Callable[[Tensor], Tensor] = small.forward
        self.forward = "lean, packed weights" if isinstance(small, Packed) else "lean"
        self._input_norm = Norm(parts.input_norm) if head.norm_before_fc else None
        self._fc_norm = [Norm(one) for one in parts.fc_norm] if head.fc_norm else []
        # What is given where no state of the target is, in P-EAGLE [hidden]: the learned state, fused as states are.
        self.masked = self.fused(parts.mask_hidden[None])[0] if head.mask_token is not None else None

    @property
    def parameters(self) -> int:
        """Its own, without an embedding that is the target's."""
        return sum(weight.numel() for weight in self._weights())

    @property
    def weight_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self._weights())

    def fused(self, states: Tensor) -> Tensor:
        """The target's states [.., layers * hidden] as the head reads them [.., its hidden]."""
        if self._input_norm is not None:
            states = self._input_norm(states)
        if self._fc_norm:
            chunks = states.chunk(len(self._fc_norm), -1)
            states = torch.cat([norm(chunk) for norm, chunk in zip(self._fc_norm, chunks, strict=True)], -1)
        return self._fc(states)

    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, updates: Sequence[Update]) -> Tensor:
        """One pass over tokens `ids` [batch, n] beside what is `given` [batch, n, hidden] for the place before each:
        `fused` states, or own output. `at` [batch or 1, n] are their positions. Own output of each [batch, n, hidden]:
        what is given for the next place, and what `logits` are made from."""
        embedded = self.embed(ids).to(given.dtype)
        frame = Frame(self.rotary(embedded, at), mask)
        first, *rest = self.layers
        normed = self._hidden_norm(given)
        read = torch.cat((first.before(embedded), normed), -1)
        x = first.run(normed if self.head.norm_before_residual else given, frame, updates[0], read)
        for layer, update in zip(rest, updates[1:], strict=True):
            x = layer.run(x, frame, update)
        return self._norm.forward(x) if self.head.norm_output else x

    def logits(self, own: Tensor) -> Tensor:
        """Logits [n, V] over the target's vocabulary of own output [n, hidden]; minus infinity where nothing is ever
        drafted."""
        small = self._lm_head(own if self.head.norm_output else self._norm.forward(own))
        if self.ids is None:
            return small
        return small.new_full((len(small), self.vocab_size), float("-inf")).index_copy_(1, self.ids, small)

    def _weights(self) -> list[Tensor]:
        own = [self.embed.weight] if self.embed_is_own else []
        return [*self.parts.parameters(), *own]

    embed_is_own = False


class HeadReader:
    """A head and its memory of the pairs of one text, with room for `capacity` of them."""

    def __init__(self, head: Eagle3, capacity: int) -> None:
        self.head, self.capacity = head, capacity
        self.vocab_size = head.vocab_size
        self.cache = RewindableCache(head.config, capacity)
        self.own = torch.empty(0)  # output of the pairs that were read last [n, hidden]

    @property
    def at_once(self) -> bool:
        """Whether one pass drafts all tokens of a round."""
        return self.head.masked is not None

    def read(self, ids: Sequence[int], states: Tensor, keep: int = 1) -> Tensor:
        """Read pairs: tokens `ids` and the target's `states` [n, layers * hidden] of the token before each. Logits
        [keep, V] after the last."""
        return self._run(queued(list(ids), self.head.device)[None], self.head.fused(states)[None], keep)

    def step(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Read one drafted token beside the output of the pair before it; logits [1, V]."""
        ids = ids if isinstance(ids, Tensor) else queued(list(ids), self.head.device)
        return self._run(ids[None], self.own[None, -1:], 1)

    def block(self, ids: Sequence[int], states: Tensor, k: int) -> Tensor:
        """Read pairs as `read` does and k - 1 masks after them, in one pass; logits [k, V] of the k drafts."""
        masks = k - 1
        assert self.head.masked is not None and self.head.head.mask_token is not None
        given = torch.cat((self.head.fused(states), self.head.masked.expand(masks, -1)))
        read = queued([*ids, *[self.head.head.mask_token] * masks], self.head.device)
        return self._run(read[None], given[None], k)

    def deeper(self, first: int, own: Tensor, drafts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Draft on after each of the pairs from `first` on by itself, whose output is `own` [n, hidden], reading one of
        `drafts` [depths, n] after the other, or masks where these are read instead; logits [n, V] of each depth. Memory
        keeps nothing of it."""
        n, end = len(own), first + len(own)
        roots = torch.arange(first, end, device=own.device)
        seen = torch.arange(end, device=own.device) <= roots[:, None]  # [n, pairs]
        alone = torch.eye(n, dtype=torch.bool, device=own.device)
        kept = [layer.both.narrow(2, 0, end) for layer in self.cache.layers]
        for depth, tokens in enumerate(drafts, 1):
            if self.head.masked is not None:
                own, tokens = self.head.masked.expand(n, -1), [self.head.head.mask_token or 0] * n
            seen = torch.cat((seen, alone), 1)
            ids = queued(list(tokens), self.head.device)[None]
            updates = [partial(_grow, kept, index) for index in range(len(kept))]
            own = self.head.run(ids, own[None], (roots + depth)[None], seen[None, None], updates)[0]
            yield self.head.logits(own)

    def rewind(self, pairs: int) -> None:
        """Keep only so many pairs."""
        self.cache.rewind(pairs)

    def _run(self, ids: Tensor, given: Tensor, keep: int) -> Tensor:
        past, n = self.cache.get_seq_length(), ids.shape[1]
        at = torch.arange(past, past + n, device=ids.device)[None]
        mask = seen_from(at, torch.arange(past + n, device=ids.device)) if n > 1 and past else None
        try:
            self.own = self.head.run(ids, given, at, mask, [layer.put for layer in self.cache.layers])[0]
            return self.head.logits(self.own[-keep:])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelMemoryError(self, f"{past + n} tokens") from error


class ManyHeadReader:
    """A head and its memory of the pairs of up to `states.batch` sequences, whose target keeps `states`."""

    def __init__(self, head: Eagle3, states: States, capacity: int) -> None:
        self.head, self.states, self.capacity = head, states, capacity
        self.vocab_size = head.vocab_size
        self._cache = RaggedCache(head.config, capacity, states.batch)
        self._spots = torch.arange(max(capacity, states.batch), device=head.device)
        self._own = torch.empty(0)  # output of each row's last pair [batch, 1, hidden]

    def begin(self, batch: int) -> None:
        """Start anew with `batch` empty sequences."""
        self._cache.lengths = [0] * batch

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read a row of tokens in each sequence, each beside the target's states of the token before it; an empty row
        reads nothing. Logits [batch, V] after each row's last."""
        counts = [len(row) for row in rows]
        width = max(counts)
        ids = queued([[*row, *[0] * (width - len(row))] for row in rows], self.head.device)
        at = self._at(width)
        given = self.head.fused(self.states.rows(self._spots[: len(rows), None], at))
        last = queued([[max(count, 1) - 1] for count in counts], self.head.device)[..., None]
        return self._run(ids, given, at, last, counts)

    @property
    def at_once(self) -> bool:
        """Whether one pass drafts all tokens of a round."""
        return self.head.masked is not None

    def block(self, rows: Sequence[Sequence[int]], k: int) -> Tensor:
        """Read rows as `read` does and k - 1 masks after each, in one pass; logits [batch, k, V] of the k drafts. The
        masks are not kept."""
        assert self.head.masked is not None and self.head.head.mask_token is not None
        counts, device = [len(row) for row in rows], self.head.device
        width, mask = max(counts) + k - 1, self.head.head.mask_token
        ids = queued([[*row, *[mask] * (width - len(row))] for row in rows], device)
        at, read = self._at(width), queued([[count] for count in counts], device)
        fused = self.head.fused(self.states.rows(self._spots[: len(rows), None], at))
        given = torch.where((self._spots[:width] < read)[..., None], fused, self.head.masked)
        last = queued([[max(count, 1) - 1 + depth for depth in range(k)] for count in counts], device)[..., None]
        return self._run(ids, given, at, last, counts).view(len(rows), k, -1)

    def step(self, ids: Sequence[int] | Tensor, going: Sequence[int]) -> Tensor:
        """Read one drafted token [batch] in each of the sequences `going`, beside the output of the pair before it;
        logits [batch, V], those of other rows of no meaning."""
        ids = ids if isinstance(ids, Tensor) else queued(list(ids), self.head.device)
        counts = [int(row in going) for row in range(len(ids))]
        return self._run(ids[:, None], self._own, self._at(1), None, counts)

    def rewind(self, pairs: Sequence[int]) -> None:
        """Keep only so many pairs of each sequence."""
        self._cache.lengths = list(pairs)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences only; the target lets its states of the others go."""
        self._cache.keep(rows, self.head.device)

    def _at(self, width: int) -> Tensor:
        return queued([[start + i for i in range(width)] for start in self._cache.lengths], self.head.device)

    def _run(self, ids: Tensor, given: Tensor, at: Tensor, last: Tensor | None, counts: Sequence[int]) -> Tensor:
        cache = self._cache
        cache.places.rows, cache.places.at = self._spots[: len(ids), None], at
        cache.places.end = max(cache.lengths) + ids.shape[1]
        mask = seen_from(at, self._spots[: cache.places.end])
        try:
            own = self.head.run(ids, given, at, mask, [layer.put for layer in cache.layers])
            self._own = own if last is None else own.take_along_dim(last, 1)
            logits = self.head.logits(self._own.flatten(0, 1))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelMemoryError(self, f"{cache.places.end} tokens, batch {len(ids)}") from error
        cache.lengths = [length + count for length, count in zip(cache.lengths, counts, strict=True)]
        return logits


def _grow(kept: list[Tensor], index: int, both: Tensor) -> tuple[Tensor, Tensor]:
    kept[index] = torch.cat((kept[index], both), 2)
    keys, values = kept[index].chunk(2, 1)
    return keys, values


def load_head(head: Head, target: LoadedModel) -> Eagle3:
    """Load a head beside its target, in the target's precision. Raises ModelError where it does not fit the target,
    where its weights are not those of its configuration, or where its vocabulary map leads elsewhere."""
    require_fit(head, target.name, target.model.config)
    text = target.model.config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    reads = head.reads(layers)
    weight = target.model.get_input_embeddings().weight
    tensors = _tensors(head)
    ids = _vocabulary(head, tensors.pop("d2t", None), tensors.pop("t2d", None))
    own = tensors.pop("embed_tokens.weight", None)
    if "mask_hidden" in tensors:  # [1, 1, width] or [1, width], by trainer
        tensors["mask_hidden"] = tensors["mask_hidden"].flatten()
    with torch.device("meta"):
        parts = _Parts(head, len(reads))
    _require_shapes(head, parts, tensors)
    to = {"device": weight.device, "dtype": weight.dtype}
    parts.load_state_dict({name: tensor.to(**to) for name, tensor in tensors.items()}, assign=True)
    parts.eval().requires_grad_(False)
    embed = target.model.get_input_embeddings()
    if own is not None:
        if own.shape != (head.vocab_size, head.hidden):
            raise _misfit(head, "embed_tokens.weight", own.shape, (head.vocab_size, head.hidden))
        embed = nn.Embedding(*own.shape, _weight=own.to(**to))
    elif head.hidden != head.target_hidden:
        raise ModelError(
            f"{head.name} has no embedding of its own, and the target's is {head.target_hidden} wide, not "
            f"{head.hidden}",
            hint=_COPY_AGAIN,
        )
    loaded = Eagle3(head, parts, embed, reads, layers, None if ids is None else ids.to(weight.device))
    loaded.embed_is_own = own is not None
    _require_lean(loaded)
    return loaded


def _tensors(head: Head) -> dict[str, Tensor]:
    """Tensors by their names in the `speculators` library."""
    found: dict[str, Tensor] = {}
    for file in head_files(head):
        try:
            with safe_open(str(file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  # it is no mapping
                    known = name.removeprefix("model.").replace("midlayer.", "layers.0.")
                    if not known.startswith(_UNUSED):
                        found[known] = weights.get_tensor(name)
        except Exception as error:
            raise ModelError(
                f"the weights of {head.name} are truncated or damaged ({type(error).__name__})", hint=_COPY_AGAIN
            ) from None
    return found


def _vocabulary(head: Head, offsets: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The target's ids of what a head drafts [draft vocabulary], from the offsets d2t; None where these are all. Raises
    ModelError where they lead out of the vocabulary, meet, or are not those that the mask t2d says."""
    if offsets is None:
        if head.draft_vocab == head.vocab_size:
            return None
        raise ModelError(f"{head.name} does not say which tokens its {head.draft_vocab:,} are: d2t is missing",
                         hint=_COPY_AGAIN)  # fmt: skip
    if offsets.shape != (head.draft_vocab,):
        raise _misfit(head, "d2t", offsets.shape, (head.draft_vocab,))
    ids = offsets.long() + torch.arange(head.draft_vocab)
    outside = ids[(ids < 0) | (ids >= head.vocab_size)]
    if len(outside):
        what = f"d2t of {head.name} leads outside the target's {head.vocab_size:,} tokens, {len(outside):,} times"
    elif (same := len(ids) - len(set(ids.tolist()))) > 0:
        what = f"d2t of {head.name} gives {same:,} tokens the id of another"
    elif mask is not None and mask.shape != (head.vocab_size,):
        raise _misfit(head, "t2d", mask.shape, (head.vocab_size,))
    elif mask is not None and not torch.equal(mask.bool().nonzero()[:, 0], ids.sort().values):
        apart = head.draft_vocab - int(mask.bool()[ids].sum())
        what = f"d2t and t2d of {head.name} disagree: {apart:,} of {head.draft_vocab:,} tokens are not in t2d"
    else:
        return ids
    raise ModelError(what, hint=f"Its target id is id + d2t[id]; {_COPY_AGAIN[0].lower()}{_COPY_AGAIN[1:]}")


def _require_shapes(head: Head, parts: _Parts, tensors: dict[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in parts.state_dict().items()}
    missing = sorted(wanted.keys() - tensors.keys())
    strange = sorted(tensors.keys() - wanted.keys())
    if missing:
        raise ModelError(
            f"{len(missing)} of the weights of {head.name} are missing, {missing[0]} first", hint=_COPY_AGAIN
        )
    if strange:
        raise ModelError(
            f"{head.name} holds weights that a head of its configuration has not, {strange[0]} first",
            hint=_COPY_AGAIN,
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise _misfit(head, name, tensors[name].shape, shape)


def _misfit(head: Head, name: str, found: Sequence[int], wanted: Sequence[int]) -> ModelError:
    return ModelError(
        f"{name} of {head.name} is {' x '.join(map(str, found))}, and should be {' x '.join(map(str, wanted))} by its "
        "config.json and target",
        hint=_COPY_AGAIN,
    )


@torch.inference_mode()
def _require_lean(loaded: Eagle3) -> None:
    """Raise ModelError where lean layers do not give what transformers' own modules give for a few tokens."""
    head, parts, n = loaded.head, loaded.parts, 8
    ids = torch.linspace(0, head.vocab_size - 1, n + 1, device=loaded.device).long()
    given, embedded = (loaded.embed(part).to(loaded.dtype)[None] for part in (ids[:-1], ids[1:]))
    at = torch.arange(n, device=loaded.device)[None]
    cache = RewindableCache(loaded.config, n)
    lean = loaded.run(ids[1:][None], given, at, None, [layer.put for layer in cache.layers])
    first: Any = parts.layers[0]
    normed, rotary = first.hidden_norm(given), loaded.rotary(embedded, at)
    x = normed if head.norm_before_residual else given
    read = torch.cat((first.input_layernorm(embedded), normed), -1)
    x = x + first.self_attn(read, position_embeddings=rotary, attention_mask=None)[0]
    x = x + first.mlp(first.post_attention_layernorm(x))
    for layer in list(parts.layers)[1:]:
        x = layer(x, position_embeddings=rotary, attention_mask=None)
    whole = parts.norm(x) if head.norm_output else x
    if not agree(whole, lean, whole):
        raise ModelError(
            f"{head.name} gives other drafts here than its layers in transformers", hint="Please report it."
        )
