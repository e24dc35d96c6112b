"""The target's own multi-token-prediction layer (MTP), which transformers leaves out when it loads a model.

It reads the pair of a token and the target's state of the token before it, after the target's last norm: each through a
norm, side by side through one matrix, through a decoder layer of the target's kind and a norm. Embedding and last
matrix are the target's. Drafting on, its output after its own norm takes the place of the target's, as in transformers
and SGLang; vLLM feeds back that before it, of models of the DeepSeek-V3 kind. Its weights are found, converted and run
by transformers' own `MtpModel`, which knows the names of both kinds: `model.layers.N` after the last of DeepSeek-V3 and
GLM-4.5, and `mtp.*` of Qwen3-Next and 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench.backends.local.headreader import Network
from specbench.errors import ModelError
from specbench.models import LoadedModel
from specbench.models.headconfig import OwnHead
from specbench.models.heads import fetched, require_own
from specbench.models.hub import quiet_transformers
from specbench.models.load import resolve

_ABSENT = object()


class Mtp(Network):
    """The loaded layer."""

    def __init__(self, head: OwnHead, model: Any, target: LoadedModel) -> None:
        own = [weight for name, weight in model.named_parameters() if name.startswith(("layers.", "shared_post_norm."))]
        super().__init__(head, head.layer, target, head.reads(head.layers), own, "transformers")
        self._model, self._layer = model, model.layers[0]
        self.shared_head = target.model.get_output_embeddings()
        self._eager = model.config._attn_implementation == "eager"

    def fused(self, states: Tensor) -> Tensor:
        return states

    def run(self, ids: Tensor, given: Tensor, at: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        model, n = self._model, ids.shape[1]
        embedded = model.embed_tokens(ids).to(given.dtype)
        if self._eager:
            if mask is None and n > 1:
                mask = torch.ones(1, 1, n, n, dtype=torch.bool, device=ids.device).tril()
            mask = None if mask is None else torch.zeros_like(mask, dtype=given.dtype).masked_fill(~mask, float("-inf"))
        at = at + 1  # the token's own place, as transformers counts
        own: Tensor = self._layer(
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


def load_mtp(target: LoadedModel) -> Mtp:
    """Load the target's own layer, in the target's precision. Raises ModelError where its checkpoint has none, or not
    all of it."""
    from transformers.modeling_layers import MtpModel

    model = target.model
    head = require_own(target.name, model.config, target.revision)
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
    loaded.to(next(model.parameters()).dtype).eval().requires_grad_(False)
    return Mtp(head, loaded, target)


@contextmanager
def _told(model: Any, head: OwnHead, folder: Path) -> Iterator[None]:
    """The target as `MtpModel` wants to read it: how many such layers there are and of what kind, where their weights
    are, and how these begin, which transformers knows of the largest models alone. As before after the block."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(head.layer, "layer_types", None)
    changes: list[tuple[Any, str, Any]] = [(text, "num_mtp_layers", 1), (model.config, "name_or_path", str(folder))]
    changes += [(text, "mtp_layer_types", kinds)] if kinds else []
    own = rf"^(model\.)?layers\.{head.layers}\." if kinds is None else r"^mtp\."
    changes.append((model, "_keys_to_ignore_on_load_unexpected", [own]))
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
    """Of all tensors in the weight files."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy") as weights:
                yield from weights.keys()
        except Exception as error:
            raise ModelError(f"the weights of {target} are damaged ({type(error).__name__})",
                             hint="Copy it again.") from None  # fmt: skip
