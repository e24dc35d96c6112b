"""The target's own multi-token-prediction layers (MTP), which transformers leaves out when it loads a model, or one
that `speculators` wrote.

A layer reads the pair of a token and the target's state of the token before it, after the target's last norm: each
through a norm, side by side through one matrix, through a decoder layer of the target's kind and a norm. Embedding and
last matrix are the target's. Drafting on, its output after its own norm takes the place of the target's, as in
transformers and SGLang; vLLM feeds back that before it, of models of the DeepSeek-V3 kind. Its weights are
found, converted and run by transformers' own `MtpModel`, which knows the names of both kinds: `model.layers.N` after
the last of DeepSeek-V3 and GLM-4.5, and `mtp.*` of Qwen3-Next and 3.5. Of several layers in a row each drafts one token
of a round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench.acceptance.rules import queued
from specbench.backends.local.headreader import HeadReader, Network, out_of_memory, require_shapes, tensors_of
from specbench.backends.local.lean import seen_from
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.headconfig import OwnHead
from specbench.models.heads import require_fit, require_own
from specbench.models.hub import fetched, quiet_transformers
from specbench.models.load import resolve

_ABSENT = object()


class Mtp(Network):
    """`count` loaded layers."""

    def __init__(self, head: OwnHead, model: Any, target: LoadedModel) -> None:
        own = [weight for name, weight in model.named_parameters() if name.startswith(("layers.", "shared_post_norm."))]
        super().__init__(head, head.layer, target, head.reads(head.layers), own, "transformers")
        self._model, self.count = model, head.count
        self.shared_head = target.model.get_output_embeddings()
        self._eager = model.config._attn_implementation == "eager"

    def fused(self, states: Tensor) -> Tensor:
        return states

    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, cache: Any, layer: int = 0) -> Tensor:
        """Of one of its layers, which reads the token so many places further on."""
        model, n = self._model, ids.shape[1]
        embedded = model.embed_tokens(ids).to(given.dtype)
        if self._eager:
            if mask is None and n > 1:
                mask = torch.ones(1, 1, n, n, dtype=torch.bool, device=ids.device).tril()
            mask = None if mask is None else torch.zeros_like(mask, dtype=given.dtype).masked_fill(~mask, float("-inf"))
        at = at + layer + 1  # the token's own place, as transformers counts
        own: Tensor = model.layers[layer](
            embedded,
            given,
            position_embeddings=model.rotary_emb(embedded, position_ids=at),
            attention_mask=mask,
            position_ids=at,
            past_key_values=cache,
        )
        return own

    def logits(self, own: Tensor) -> Tensor:
        logits: Tensor = self._model._project_to_logits(own[None])[0]
        return logits


class RowReader(HeadReader):
    """Of several layers in a row: layer k reads for each pair the output of the layer before it, and the token k places
    further on. Pairs at the end that lack this one are read when it is drafted, and forgotten afterwards."""

    head: Mtp

    def __init__(self, head: Mtp, capacity: int) -> None:
        super().__init__(head, capacity)
        self._ids: list[int] = []
        self._drafted: list[Tensor] = []
        width = head.config.hidden_size
        self._owns = torch.zeros(head.count, capacity, width, dtype=head.dtype, device=head.device)

    def read(self, ids: Sequence[int], states: Tensor, keep: int = 1) -> Tensor:
        self.rewind(self.pairs)
        first = self.pairs
        self._ids += ids
        logits = super().read(ids, states, keep)
        self._owns[0, first : self.pairs] = self.own
        for layer in range(1, 1 if keep else self.head.count):  # of a prompt, before its first round is timed
            self._read(layer, self.pairs - layer)
        return logits

    def step(self, ids: Sequence[int] | Tensor) -> Tensor:
        self._drafted.append(ids if isinstance(ids, Tensor) else queued(list(ids), self.head.device))
        own = self._read(len(self._drafted), self.pairs)
        return self.head.logits(own[-1:])

    def deeper(self, first: int, own: Tensor, drafts: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Where all before it was kept, the tokens are the text's own, so that one pass reads them for all places."""
        end = first + len(own)
        self._drafted.clear()
        for layer, tokens in zip(range(1, self.head.count), drafts, strict=False):
            self._drafted.append(queued(list(tokens[-1:]), self.head.device))
            self.cache.layers[layer].length = min(self.cache.layers[layer].length, first)
            self._read(layer, end)
            yield self.head.logits(self._owns[layer, first:end])

    def rewind(self, pairs: int) -> None:
        del self._ids[pairs:]
        self._drafted.clear()
        for layer, kept in enumerate(self.cache.layers):
            kept.length = min(kept.length, max(0, pairs - layer))

    def _read(self, layer: int, end: int) -> Tensor:
        """Read what `layer` has not read of the first `end` pairs; its output [n, hidden]."""
        past = self.cache.layers[layer].length
        if end <= past:
            return self._owns[layer, :0]
        known, text = queued(self._ids[past + layer : end + layer], self.head.device), len(self._ids)
        ids = torch.cat((known, *self._drafted[max(text, past + layer) - end : layer]))[None]
        at = torch.arange(past, end, device=ids.device)[None]
        mask = seen_from(at, torch.arange(end, device=ids.device)) if end - past > 1 and past else None
        with out_of_memory(self, f"{end} tokens"):
            own = self.head.run(ids, self._owns[layer - 1, past:end][None], at, mask, self.cache, layer)[0]
        self._owns[layer, past:end] = own
        return own


def load_mtp(target: LoadedModel) -> Mtp:
    """Load the target's own layers, in the target's precision. Raises ModelError where its checkpoint has none, or not
    all of them."""
    from transformers.modeling_layers import MtpModel

    model = target.model
    head = require_own(target.name, model.config, target.revision)
    if any(weight.element_size() == 1 for weight in model.parameters()):  # its scales would not be read
        raise ModelError(
            f"{target.name} runs in 8 bits or fewer here, and its multi-token-prediction layers do not",
            hint="Use its checkpoint in bfloat16, or measure on a server: specbench sweep --engine.",
        )
    source = resolve(target.name)
    folder = fetched(target.name, target.revision) if source.kind == "hub" else Path(source.location)
    with _told(model, head, folder):
        pattern = MtpModel.get_mtp_weights_regex(model)
        if not any(pattern.search(name) for name in _names(folder, target.name)):
            raise ModelError(
                f"{target.name} holds no weights of multi-token-prediction layers",
                hint="Use its original checkpoint, or another draft.",
            )
        try:
            with quiet_transformers():
                loaded = MtpModel.from_pretrained(model, device_map={"": model.device})
        except Exception as error:
            missing = re.search(r"\['([\w.]+)'", str(error))
            raise ModelError(
                f"the multi-token-prediction layer of {target.name} cannot be loaded "
                f"({f'{missing[1]} is missing' if missing else type(error).__name__})",
                hint="Copy the model again, with all of its weights.",
            ) from None
    return _loaded(head, loaded, target)


# What `speculators` calls the parts of a layer; all else is of the decoder layer.
_WRITTEN = {"input_proj.": "eh_proj.", "hidden_layernorm.": "hnorm.", "token_layernorm.": "enorm."}
_WRITTEN |= {"final_layernorm.": "post_norm."}


def load_written_mtp(head: OwnHead, target: LoadedModel) -> Mtp:
    """Load a layer that `speculators` wrote, as `load_mtp` does the target's own."""
    from transformers.modeling_layers import MtpModel

    model = target.model
    require_fit(head, target.name, model.config)
    tensors = {}
    for name, tensor in tensors_of(head, ("embed_tokens.", "lm_head.", "verifier_", "rotary_emb."), {}).items():
        part = name.removeprefix("mtp_layers.0.")
        ours = next((new + part.removeprefix(old) for old, new in _WRITTEN.items() if part.startswith(old)), None)
        tensors[f"layers.0.{ours or f'mtp_block.{part}'}"] = tensor
    with _told(model, head, head.location), torch.device("meta"):
        loaded = MtpModel(model, 1)
    own = {name: tensor for name, tensor in loaded.state_dict().items() if name.startswith("layers.")}
    require_shapes(head, own, tensors)
    loaded.load_state_dict({name: one.to(model.device) for name, one in tensors.items()}, strict=False, assign=True)
    loaded.tie_with_main_model(model)
    return _loaded(head, loaded, target)


def _loaded(head: OwnHead, model: Any, target: LoadedModel) -> Mtp:
    model.layers.to(next(target.model.parameters()).dtype)
    return Mtp(head, model.eval().requires_grad_(False), target)


@contextmanager
def _told(model: Any, head: OwnHead, folder: Path) -> Iterator[None]:
    """The target as `MtpModel` wants to read it: how many such layers there are and of what kind, where their weights
    are, and how these begin, which transformers knows of the largest models alone. As before after the block."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(head.layer, "layer_types", None)
    changes: list[tuple[Any, str, Any]] = [
        (text, "num_mtp_layers", head.count),
        (model.config, "name_or_path", str(folder)),
    ]
    changes += [(text, "mtp_layer_types", kinds)] if kinds else []
    after = range(head.layers, head.layers + head.count)
    own = [rf"^(model\.)?layers\.{layer}\." for layer in after] if kinds is None else [r"^mtp\."]
    changes.append((model, "_keys_to_ignore_on_load_unexpected", own))
    before = [(where, name, getattr(where, name, _ABSENT)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            if value is _ABSENT:
                delattr(where, name)
            else:
                setattr(where, name, value)


def _names(folder: Path, target: str) -> Iterator[str]:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy") as weights:
                yield from weights.keys()
        except Exception as error:
            raise ModelError(
                f"the weights of {target} are damaged ({type(error).__name__})", hint="Copy it again."
            ) from None
