"""A transformers model with decoder layers that do the same in fewer, larger steps; for both arms alike.

In a pass over a few tokens most of transformers' time goes into small operations: seven matrix products where four do,
keys and values repeated for every query head, norms, masks and bookkeeping. Here q, k and v are one product and gate
and up another, and the query heads that share keys are rows of one attention. The arithmetic is the model's own; each
layer is held against the one it replaces when the model is loaded, and a model of another make, or one whose layers do
not agree, stays as it is.

A pass over a few tokens reads every weight once and does little with it. In the order of the file a CPU reads bfloat16
at about half the speed that oneDNN reaches in its own blocked order, and float32 once for each of two or three tokens,
so weights are rearranged once, at load (`Packed`). They are the same: only the order of the sums differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbench.backends.local.cache import RewindableCache

# Kernels are chosen for so many tokens at once; the same weights serve any other number. For one of float32 oneDNN
# keeps the order of the file.
_TOKENS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 2}


class Packed(nn.Module):
    """`x @ weight.T + bias` for x [..., in] -> [..., out], with the weight [out, in] in blocked order. `copies` says
    that the plain weight stays in memory as well, because the input embedding is the same tensor."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, copies: bool = False) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TOKENS[weight.dtype])
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.copies = copies
        self._run: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        self._add: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.binary
        # Plain attributes: a module looks its parameters up in Python, at every call.
        self._given = (self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, *self._given, "none", [], "")

    def onto(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` + forward(x), in one operation."""
        return self._add(x, stream, *self._given, "add")


class Plain(nn.Module):
    """The same with the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def onto(self, stream: Tensor, x: Tensor) -> Tensor:
        """`stream` + forward(x); on a device as one product that begins from the stream."""
        if self.bias is None and x.device.type != "cpu":
            rows = torch.addmm(stream.flatten(0, -2), x.flatten(0, -2), self.weight.t())
            return rows.view_as(stream)
        return stream + self.forward(x)


def packs(weight: Tensor) -> bool:
    """Whether this torch and this CPU have kernels for such a weight in blocked order, and gain by it."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    if weight.device.type != "cpu" or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    if weight.dtype == torch.float32:
        return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(weight.dtype)
    return known is not None and hasattr(torch.ops.mkldnn, known) and bool(getattr(torch.ops.mkldnn, known)())


def joined(linears: list[nn.Linear]) -> Packed | Plain:
    """Linear layers over the same input as one: [..., in] -> [..., sum of their outs]. All or none have a bias."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    return Packed(weight, bias) if packs(weight) else Plain(weight, bias)


# Models that are: token embedding, decoder layers of one kind, norm, head, and nothing else.
_SHELLS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}

# How far two ways to the same numbers may be apart, as a share of these: rounding, no more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.04, torch.float16: 0.01}

# Takes new keys and values [batch, 2 * key_heads, n, head_dim], keys first, and returns all keys and all values.
Update = Callable[[Tensor], tuple[Tensor, Tensor]]

# By layer, what keeps the hidden states [batch, n, hidden] that it is given; after the last layer, what the norm gives.
Taps = Mapping[int, Callable[[Tensor], None]]


class Frame:
    """What all layers of one pass share: how their heads are turned, and, unless the pass is causal by itself, a mask
    of what each query may see."""

    def __init__(self, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> None:
        cos, sin = rotary
        half = sin.shape[-1] // 2
        self.mask = mask
        self._cos = cos[:, :, None]
        self._sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]
        self._turns: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._folded: dict[int, Tensor] = {}

    def turns(self, turned: int, still: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [batch, n, turned + still, head_dim] for that many heads that are turned by their position
        and, after them, heads that are not: by cosine 1 and sine 0. The sines of the first half are negated, so that
        rotating a half needs no negation."""
        if (turned, still) not in self._turns:
            shape = (*self._cos.shape[:2], still, self._cos.shape[-1])
            pairs = ((self._cos, self._cos.new_ones(shape)), (self._sin, self._sin.new_zeros(shape)))
            cos, sin = (torch.cat((one.expand(-1, -1, turned, -1), other), 2) for one, other in pairs)
            self._turns[turned, still] = cos, sin
        return self._turns[turned, still]

    def folded(self, groups: int) -> Tensor | None:
        """The mask, repeated for that many query heads to a key head [batch or 1, 1, groups * n, length]."""
        if self.mask is None or groups == 1:
            return self.mask
        if groups not in self._folded:
            self._folded[groups] = self.mask.repeat(1, 1, groups, 1)
        return self._folded[groups]


class _Steps(NamedTuple):
    """What a layer calls, looked up once: a module finds its parts in Python at every access, and looks for hooks at
    every call, which together is a twentieth of a small model's step."""

    before: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]
    out_onto: Callable[[Tensor, Tensor], Tensor]
    between: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    down_onto: Callable[[Tensor, Tensor], Tensor]


class LeanLayer(nn.Module):
    """One decoder layer, [batch, n, hidden] -> the same, made of a transformers `layer`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, feed = layer.self_attn, layer.mlp
        self.index = int(attention.layer_idx)
        self.head_dim = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.head_dim
        self.key_heads = attention.k_proj.out_features // self.head_dim
        self.groups = self.heads // self.key_heads
        self.scale = float(attention.scaling)
        self.q_norm, self.k_norm = (
            None if getattr(attention, name, None) is None else Norm(getattr(attention, name))
            for name in ("q_norm", "k_norm")
        )
        self._normed = None
        if self.q_norm is not None and self.k_norm is not None:
            self._normed = self.q_norm.forward, self.k_norm.forward
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = joined([attention.o_proj])
        self.gate_up = joined([feed.gate_proj, feed.up_proj])
        self.down = joined([feed.down_proj])
        self.act = feed.act_fn
        self.before, self.between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self._steps = _Steps(
            self.before.forward,
            self.qkv.forward,
            self.out.onto,
            self.between.forward,
            self.gate_up.forward,
            self.act.forward,
            self.down.onto,
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **unused: Any,
    ) -> Tensor:
        """As transformers calls a layer. The frame of a pass is kept where all its layers find it, in their cache."""
        seen, frame = getattr(past_key_values, "frame", (None, None))
        if frame is None or seen is not position_embeddings:
            frame = Frame(position_embeddings, attention_mask)
            past_key_values.frame = (position_embeddings, frame)

        def update(both: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = both.chunk(2, 1)
            found: tuple[Tensor, Tensor] = past_key_values.update(keys, values, self.index)
            return found

        return self.run(hidden_states, frame, update)

    def run(self, x: Tensor, frame: Frame, update: Update, read: Tensor | None = None) -> Tensor:
        """One pass over hidden states x [batch, n, hidden]; `update` takes its keys and values into the cache of this
        layer and returns all that are there. Attention reads `read` [batch, m, width], where a draft head has something
        else for it than x after its norm: of more tokens than x the first have keys and values alone."""
        n, steps = x.shape[1], self._steps
        q, kept = self._turned(steps.before(x) if read is None else read, frame)
        keys, values = update(kept.transpose(1, 2))
        x = steps.out_onto(x, self._attend(q[:, q.shape[1] - n :], keys, values, frame))
        gate, up = steps.gate_up(steps.between(x)).chunk(2, -1)
        return steps.down_onto(x, steps.act(gate).mul_(up))

    def keep(self, read: Tensor, frame: Frame, update: Update) -> None:
        """Take the keys and values of `read` [batch, n, width] into the cache, and nothing else."""
        update(self._turned(read, frame)[1].transpose(1, 2))

    def _turned(self, read: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Queries [batch, n, heads, head_dim] of what attention reads, turned by their positions, and keys with values
        [batch, n, 2 * key_heads, head_dim]."""
        rows = self._steps.qkv(read).view(*read.shape[:2], -1, self.head_dim)
        if self._normed is not None:
            q_norm, k_norm = self._normed
            q, k, v = rows.split_with_sizes((self.heads, self.key_heads, self.key_heads), 2)
            rows = torch.cat((q_norm(q), k_norm(k), v), 2)
        cos, sin = frame.turns(self.heads + self.key_heads, self.key_heads)
        rows = torch.addcmul(rows * cos, rows.roll(self.head_dim // 2, -1), sin)
        q, kept = rows.split_with_sizes((self.heads, 2 * self.key_heads), 2)
        return q, kept

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> Tensor:
        """Queries [batch, n, heads, head_dim] over keys and values [batch, key_heads, length, head_dim]; the result is
        [batch, n, heads * head_dim]."""
        batch, n, _, _ = q.shape
        if n > 1 and frame.mask is None:
            seen = functional.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, is_causal=True, scale=self.scale, enable_gqa=self.groups > 1
            )
            return seen.transpose(1, 2).reshape(batch, n, -1)
        # Heads that share keys are rows of one query: nothing is repeated, and kernels that take a mask do.
        rows = (q if n == 1 else q.transpose(1, 2)).reshape(batch, self.key_heads, self.groups * n, self.head_dim)
        mask = frame.folded(self.groups)
        seen = functional.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=self.scale)
        if n == 1:
            return seen.reshape(batch, 1, -1)
        return seen.reshape(batch, self.heads, n, self.head_dim).transpose(1, 2).reshape(batch, n, -1)


class Norm(nn.Module):
    """Root-mean-square norm over the last dimension, with the weight of a transformers module.

    On a CPU torch makes it of eight operations. Of x and -x together the mean is 0 and the variance the mean square of
    x, so half of their layer norm is the same, in one kernel."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
        self.eps = float(module.variance_epsilon)
        on_cpu = self.weight.device.type == "cpu"
        self._twice = torch.cat((self.weight, self.weight)) if on_cpu else None

    def forward(self, x: Tensor) -> Tensor:
        if self._twice is None:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        both, _, _ = torch.native_layer_norm(torch.cat((x, -x), -1), self._twice.shape, self._twice, None, self.eps)
        return both.narrow(-1, 0, x.shape[-1])


class LeanDecoder:
    """A whole model of lean layers without transformers' shell around them: token ids in, logits out."""

    def __init__(self, model: Any) -> None:
        body = model.model
        self._embed, self._layers, self._norm = body.embed_tokens, list(body.layers), Norm(body.norm)
        self._rotary, self._head = body.rotary_emb, model.lm_head

    def __call__(self, ids: Tensor, cache: RewindableCache, keep: int, taps: Taps | None = None) -> Tensor:
        """Read `ids` [batch, n] after what the cache holds; logits [batch, keep, V] after the last `keep`."""
        n, past = ids.shape[1], cache.get_seq_length()
        at = torch.arange(past, past + n, device=ids.device)[None]
        # A prompt is causal by itself, and one token sees all.
        mask = seen_from(at, torch.arange(past + n, device=ids.device)) if n > 1 and past else None
        return self.run(ids, at, mask, [layer.put for layer in cache.layers], keep, taps)

    def run(
        self,
        ids: Tensor,
        at: Tensor,
        mask: Tensor | None,
        updates: Sequence[Update],
        keep: int | Tensor,
        taps: Taps | None = None,
    ) -> Tensor:
        """One pass over `ids` [batch, n] at positions `at` [batch or 1, n], with an update of the cache for each layer.
        Logits [batch, keep, V] after the last `keep` tokens, or after those of each row at `keep` [batch, m]."""
        x = self._embed(ids)
        frame = Frame(self._rotary(x, at), mask)
        for index, (layer, update) in enumerate(zip(self._layers, updates, strict=True)):
            if taps and index in taps:
                taps[index](x)
            x = layer.run(x, frame, update)
        if taps and len(self._layers) in taps:
            taps[len(self._layers)](self._norm(x))
        kept = x[:, -keep:] if isinstance(keep, int) else x.take_along_dim(keep[..., None], 1)
        logits: Tensor = self._head(self._norm(kept))
        return logits


def seen_from(at: Tensor, places: Tensor) -> Tensor:
    """Mask [batch or 1, 1, n, length]: a token at `at` [batch or 1, n] sees every one of `places` [length] up to its
    own."""
    return (places <= at[..., None])[:, None]


def agree(one: Tensor, other: Tensor, whole: Tensor) -> bool:
    """Whether two results differ by rounding alone, measured by the size of `whole`; never where one is not finite."""
    far = (one.float() - other.float()).norm()
    return bool(far <= TOLERANCE.get(one.dtype, 0.0) * whole.float().norm())


def _of_transformers(module: Any, names: Collection[str]) -> bool:
    """Whether a module is of one of these classes of transformers, and not of another's class of the same name."""
    kind = type(module)
    return kind.__name__ in names and kind.__module__.startswith("transformers.models.")


def is_lean(model: Any) -> bool:
    return _of_transformers(model, _SHELLS) and all(isinstance(layer, LeanLayer) for layer in model.model.layers)


def decoder_of(model: Any) -> LeanDecoder | None:
    """The model without its shell; None where it keeps one, or any layer is not lean."""
    return LeanDecoder(model) if is_lean(model) else None


# Decoder layers known to be: norm, attention with rotary positions, norm, gated feed-forward, each added to the stream.
_KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}

# Tokens read in the three passes that are compared: a prompt, a step, a verify pass.
_PASSES = (8, 1, 3)


@torch.inference_mode()
def make_lean(model: Any) -> None:
    """Replace, in place, the layers of a loaded transformers model by lean ones, and pack its head, where the model is
    known and each layer gives what the one before it gave."""
    if not _of_transformers(model, _SHELLS) or not all(map(_fits, model.model.layers)):
        return
    passes = _passes(model)
    for index, layer in enumerate(model.model.layers):
        lean = LeanLayer(layer)
        old, new = (_through(one, passes, model.config) for one in (layer, lean))
        # Held against what the layer adds to the stream, which alone is its own.
        if not all(agree(one, other, one - given.x) for given, one, other in zip(passes, old, new, strict=True)):
            return
        model.model.layers[index] = lean
        passes = [replace(one, x=x) for one, x in zip(passes, old, strict=True)]
    head = model.lm_head
    if _is_plain(head) and packs(head.weight):
        model.lm_head = Packed(head.weight, head.bias, copies=head.weight is model.get_input_embeddings().weight)


def forward_of(model: Any) -> str:
    """What runs the layers of a model, for the record."""
    if not is_lean(model):
        return "transformers"
    return "lean, packed weights" if isinstance(model.lm_head, Packed) else "lean"


@dataclass(frozen=True, slots=True)
class _Pass:
    """Hidden states x [1, n, hidden] of a few tokens, their positions [1, n], and what a layer is told of them."""

    x: Tensor
    positions: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor | None


def _fits(layer: Any) -> bool:
    """Whether a decoder layer is of a kind that LeanLayer knows, over full attention."""
    if not _of_transformers(layer, _KNOWN):
        return False
    attention, feed = layer.self_attn, layer.mlp
    joined = attention.q_proj, attention.k_proj, attention.v_proj
    if not all(map(_is_plain, (*joined, attention.o_proj, feed.gate_proj, feed.up_proj, feed.down_proj))):
        return False
    biases = {linear.bias is None for linear in joined}
    windows = (getattr(one, "sliding_window", None) for one in (attention, attention.config))
    sliding = getattr(attention.config, "use_sliding_window", True) and any(windows)
    return len(biases) == 1 and not sliding


def _is_plain(linear: Any) -> bool:
    """Whether it multiplies by its weight and no more: a quantized one is of another class, or its weight is."""
    weight = getattr(linear, "weight", None)
    return type(linear) is nn.Linear and type(weight) is nn.Parameter and weight.dtype in TOLERANCE


def _passes(model: Any) -> list[_Pass]:
    """The embeddings of a few tokens from all over the vocabulary, as the first layer gets them."""
    embedding, rotary = model.get_input_embeddings(), model.model.rotary_emb
    ids = torch.linspace(0, embedding.num_embeddings - 1, sum(_PASSES), device=model.device).long()[None]
    found, past = [], 0
    for n in _PASSES:
        x, at = embedding(ids[:, past : past + n]), torch.arange(past, past + n, device=model.device)[None]
        mask = seen_from(at, torch.arange(past + n, device=model.device)) if n > 1 and past else None
        found.append(_Pass(x, at, rotary(x, at), mask))
        past += n
    return found


def _through(layer: Any, passes: Sequence[_Pass], config: Any) -> list[Tensor]:
    cache = RewindableCache(config, sum(_PASSES))
    return [
        layer(
            one.x,
            attention_mask=one.mask,
            position_ids=one.positions,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=one.rotary,
        )
        for one in passes
    ]
