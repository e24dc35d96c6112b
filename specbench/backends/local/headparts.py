"""What a draft head is made of: classes of transformers, and weight files with the tensors of its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from specbench.errors import ModelError
from specbench.models.headconfig import Head
from specbench.models.heads import head_files

COPY_AGAIN = "Copy the head again, with weights and config.json of the same one."


class LayerKind:
    """transformers' classes for one family of decoder layers."""

    def __init__(self, layer: Any, norm: Any, rotary: Any) -> None:
        self.layer, self.norm, self.rotary = layer, norm, rotary


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
        raise ModelError(f"{head.name} does not say which tokens its {drafts:,} are: d2t is missing",
                         hint=COPY_AGAIN)  # fmt: skip
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


def require_shapes(head: Head, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
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
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise misfit(head, name, tensors[name].shape, shape)


def misfit(head: Head, name: str, found: Sequence[int], wanted: Sequence[int]) -> ModelError:
    return ModelError(
        f"{name} of {head.name} is {' x '.join(map(str, found))}, and should be {' x '.join(map(str, wanted))} by its "
        "config.json and target",
        hint=COPY_AGAIN,
    )
